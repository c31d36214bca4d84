/**
 * Whose orders the agent takes: a copy of an installation's database names the same sleds, and its watcher would end every VMM
 * that the copy doesn't know. So the first installation that changed something here is the only one, until it is released.
 */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { z } from 'zod';
import { ANOTHER_INSTALLATION, installationId } from '../wire/sled-protocol.ts';
import { AgentRefusal } from './agent.ts';
import { asDiskError, type Disk } from './disk.ts';

/** The file of the installation's id, in the agent's data. */
const INSTALLATION = 'installation';

/** How callers name their installation: not at all, where others wrote them, or another sled asks. */
export type CallerInstallation = string | readonly string[] | undefined;

export interface InstallationKeeperOptions {
  /** The agent's data; `null`: none, and what is kept is gone with the agent. */
  readonly dataDir: string | null;
  readonly disk: Disk;
  /** An operator says so: the one that was kept is forgotten, and the next that changes something is taken. */
  readonly release?: boolean | undefined;
  /** Gets a message about each other installation that calls, once while it calls alone. */
  readonly onTrouble?: (message: string) => void;
}

/** Keeps the first installation whose call changed something, and refuses those of every other one. */
export class InstallationKeeper {
  readonly #path: string | null;
  readonly #disk: Disk;
  readonly #onTrouble: (message: string) => void;
  #kept: string | null;
  #refused: string | null = null;

  /** Reads the one that is kept. Throws what the file system says, and of a file in which no installation is. */
  constructor({ dataDir, disk, release = false, onTrouble = () => {} }: InstallationKeeperOptions) {
    this.#path = dataDir === null ? null : join(dataDir, INSTALLATION);
    this.#disk = disk;
    this.#onTrouble = onTrouble;
    if (release && this.#path !== null) disk.remove(this.#path);
    this.#kept = this.#path === null ? null : readKept(this.#path);
  }

  /** Throws an {@link AgentRefusal} (409) for a call of another installation than the one that is kept. */
  requireSame(caller: CallerInstallation): void {
    const named = readCaller(caller);
    if (named === null || this.#kept === null || named === this.#kept) return;
    const message = `this sled agent takes orders of the installation ${this.#kept}, and this call is of the installation ${named}: remove the sled there; or, if it is to be the other one's, end its VMs and start its agent once with --release-installation`;
    if (this.#refused !== named) this.#onTrouble(`a call was refused: ${message}`);
    this.#refused = named;
    throw new AgentRefusal(409, ANOTHER_INSTALLATION, message);
  }

  /**
   * A call that changes something is about to be done: its installation is the one that is kept from now on, where none was. On
   * disk before, but where a disk that can't be written must not keep a guest from being ended (`mustWait` false): then it is
   * written as soon as it can be. Throws as {@link requireSame}, and a `DiskError`.
   */
  keep(caller: CallerInstallation, mustWait: boolean): void {
    this.requireSame(caller);
    const named = readCaller(caller);
    if (named === null || this.#kept !== null) return;
    const path = this.#path;
    if (path !== null) {
      const write = () => this.#disk.replaceFile(path, `${named}\n`);
      if (mustWait) write();
      else this.#disk.eventually(INSTALLATION, write);
    }
    this.#kept = named;
  }
}

function readCaller(caller: CallerInstallation): string | null {
  return caller === undefined ? null : installationId.parse(caller);
}

function readKept(path: string): string | null {
  let text: string;
  try {
    text = readFileSync(path, 'utf8').trim();
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return null;
    throw asDiskError(error) ?? error;
  }
  const kept = installationId.safeParse(text);
  if (kept.success) return kept.data;
  throw new Error(
    `${path}: holds no installation's id (${z.prettifyError(kept.error)}): write there the one whose sled this is, or start the agent once with --release-installation`,
  );
}

/** What the agent says of itself (`GET /agent`): who it is, its version, and what keeps it from doing its work. */
import { randomUUID } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { readPackageVersion } from '../platform/host/build-info.ts';
import type { AgentDescription } from '../wire/sled-protocol.ts';
import { uuid } from '../wire/uuid.ts';
import { Disk } from './disk.ts';

/** The file of the agent's id, in its data. */
const AGENT_ID = 'agent-id';

/** What changes while the agent runs. */
export interface AgentCondition {
  /** What keeps it from doing its work, a sentence each. */
  readonly trouble?: readonly string[];
  /** The CPU models that its guests can be given. */
  readonly cpuModels?: readonly string[] | null;
}

/** Describes an agent. Its id is made at its first answer, and is on disk before anybody hears it. */
export class AgentDescriber {
  readonly #dataDir: string | null;
  readonly #disk: Disk;
  readonly #isKept: boolean;
  readonly #condition: () => AgentCondition;
  #agentId: string | null = null;
  #triedToKeep = false;
  #version: string | null = null;

  /**
   * `dataDir`: the agent's data; `null`: none, and its id is another one each time it starts. `isThrownAway`: so it is with data that
   * go with the agent.
   */
  constructor(
    dataDir: string | null,
    condition: () => AgentCondition = () => ({}),
    disk: Disk = new Disk(),
    isThrownAway = false,
  ) {
    this.#isKept = dataDir !== null && !isThrownAway;
    this.#dataDir = dataDir;
    this.#disk = disk;
    this.#condition = condition;
  }

  /**
   * The agent's id, for every answer that it gives; `null` while it can't be kept. That is tried once here, and at each
   * question who it is: a disk that is full is not written to at every answer. Never throws.
   */
  get agentId(): string | null {
    if (this.#agentId === null && !this.#triedToKeep) {
      this.#triedToKeep = true;
      try {
        return this.#keep();
      } catch {
        return null;
      }
    }
    return this.#agentId;
  }

  /** The same, where the agent has it after its next start, too; else `null`. */
  get keptAgentId(): string | null {
    return this.#isKept ? this.agentId : null;
  }

  /** The agent as it is now. Throws what the file system says while its id can't be kept: an id that may change is none. */
  describe(): AgentDescription {
    const agentId = this.#keep();
    this.#version ??= readPackageVersion();
    const { trouble = [], cpuModels = null } = this.#condition();
    return {
      agent_id: agentId,
      agent_id_kept: this.#isKept,
      version: this.#version,
      trouble: [...trouble],
      ...(cpuModels === null ? {} : { cpu_models: [...cpuModels] }),
    };
  }

  #keep(): string {
    this.#agentId ??= this.#dataDir === null ? randomUUID() : keepAgentId(this.#dataDir, this.#disk);
    return this.#agentId;
  }
}

/** The id of the agent whose data these are, made where there is none. Throws what the file system says. */
export function keepAgentId(dataDir: string, disk: Disk): string {
  const path = join(dataDir, AGENT_ID);
  const known = readAgentId(path);
  if (known !== null) return known;
  const agentId = randomUUID();
  disk.makeFolder(dataDir);
  disk.replaceFile(path, `${agentId}\n`);
  return agentId;
}

/** The id in a file; `null` where there is no such file, or none in it. */
function readAgentId(path: string): string | null {
  try {
    return uuid.safeParse(readFileSync(path, 'utf8').trim()).data ?? null;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return null;
    throw error;
  }
}

/** Whether the control plane has ever marked an answer without a body: from then on one without a mark is somebody else's. */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { Disk } from './disk.ts';

/** The file that is there once it has, in the agent's data. */
const MARKED = 'control-plane-marks-its-answers';

/** Remembered with the agent's data: one that has just started must not believe what the one before it would not have. */
export class ControlPlaneMarks {
  readonly #path: string | null;
  readonly #disk: Disk;
  #seen: boolean;

  /** `dataDir`: the agent's data; `null`: none, and it is forgotten when the agent ends. */
  constructor(dataDir: string | null, disk: Disk = new Disk()) {
    this.#path = dataDir === null ? null : join(dataDir, MARKED);
    this.#disk = disk;
    this.#seen = this.#path !== null && existsSync(this.#path);
  }

  get seen(): boolean {
    return this.#seen;
  }

  /** An answer had the mark. It is written down now, or when that can be done. Never throws. */
  remember(): void {
    if (this.#seen) return;
    this.#seen = true;
    const path = this.#path;
    if (path !== null) this.#disk.eventually(`that ${MARKED}`, () => this.#disk.replaceFile(path, ''));
  }
}

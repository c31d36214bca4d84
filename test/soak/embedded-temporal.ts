/** The Temporal under a soak: one server by default, or a cluster (test/cluster). Either is killed and comes back on its data. */
import { join } from 'node:path';
import { setTimeout as pause } from 'node:timers/promises';
import { freePort } from '../../platform/host/child-process.ts';
import { findTemporalBinary } from '../../stack/temporal-binary.ts';
import { startTemporalServer, type TemporalServer } from '../../stack/temporal-server.ts';
import { plainTemporal, type TemporalSettings } from '../../temporal/connection.ts';

const START_ATTEMPTS = 5;
const START_PAUSE_MS = 300;

export interface SoakTemporal {
  readonly settings: TemporalSettings;
  /** Starts whatever of it does not run. */
  start(): Promise<void>;
  /** Disturbs a part of it, or all, for so many milliseconds. Resolves with whether there was anything to disturb. */
  disturb(downMs: number): Promise<boolean>;
  stop(): Promise<void>;
}

/** Makes the Temporal of a soak in a folder, and starts it. */
export type StartSoakTemporal = (folder: string, print: (message: string) => void) => Promise<SoakTemporal>;

/** The Temporal CLI's development server on a file: killed, it comes back on that. */
class EmbeddedTemporal implements SoakTemporal {
  readonly #folder: string;
  readonly #binary: string;
  readonly #port: number;
  #server: TemporalServer | null = null;

  constructor(folder: string, binary: string, port: number) {
    this.#folder = folder;
    this.#binary = binary;
    this.#port = port;
  }

  get settings(): TemporalSettings {
    return plainTemporal(`127.0.0.1:${this.#port}`);
  }

  async start(): Promise<void> {
    for (let attempt = 1; this.#server === null; attempt++) {
      try {
        this.#server = await startTemporalServer({
          binary: this.#binary,
          port: this.#port,
          uiPort: null,
          dbFilename: join(this.#folder, 'temporal.db'),
          logFile: join(this.#folder, 'temporal.log'),
        });
      } catch (error) {
        if (attempt >= START_ATTEMPTS) throw error;
        await pause(START_PAUSE_MS);
      }
    }
  }

  async disturb(downMs: number): Promise<boolean> {
    const server = this.#server;
    if (server === null) return false;
    await server.kill();
    this.#server = null;
    await pause(downMs);
    await this.start();
    return true;
  }

  async stop(): Promise<void> {
    await this.#server?.stop();
    this.#server = null;
  }
}

/** Starts the embedded server. */
export const startEmbeddedTemporal: StartSoakTemporal = async (folder, print) => {
  const temporal = new EmbeddedTemporal(folder, (await findTemporalBinary()).path, await freePort());
  await temporal.start();
  print(`Temporal at ${temporal.settings.connection.address}`);
  return temporal;
};

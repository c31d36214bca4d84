import type { Logger } from 'pino';
import type { Database } from '../db/connect.ts';
import { readRevokedSerials } from '../db/queries/read-revoked-serials.ts';
import { readSledDirectory } from '../db/queries/read-sled-directory.ts';
import type { IdentityHolder } from '../platform/identity/holder.ts';

/** No sled that is not expunged is known at an address. */
export class UnknownAddress extends Error {
  override readonly name = 'UnknownAddress';
}

/** How old what a process knows of sleds' identities may be, in milliseconds. */
const LOOK_EVERY_MS = 2_000;
/** How often an address that is not known is looked for at most, in milliseconds. */
const MISS_EVERY_MS = 200;

/**
 * What a process of the control plane knows of the identities of sleds: which sled is at which address, and which
 * certificates are good no more. It looks into the database every two seconds, and for an address that it doesn't know.
 */
export class SledDirectory {
  /** The control plane's own identity, which sleds are shown. */
  readonly holder: IdentityHolder;
  readonly #db: Database;
  #identities = new Map<string, string | null>();
  #revoked = new Set<string>();
  #readAt = Number.NEGATIVE_INFINITY;
  #reading: Promise<void> | null = null;
  readonly #timer: NodeJS.Timeout;
  readonly #listeners = new Set<() => void>();

  private constructor(db: Database, holder: IdentityHolder) {
    this.#db = db;
    this.holder = holder;
    // A database that is away leaves it as it was.
    this.#timer = setInterval(() => void this.#read().catch(() => {}), LOOK_EVERY_MS);
    this.#timer.unref();
  }

  /** Reads it for the first time. Throws when the database does not answer. */
  static async open(db: Database, holder: IdentityHolder): Promise<SledDirectory> {
    const directory = new SledDirectory(db, holder);
    try {
      await directory.#read();
    } catch (error) {
      directory.close();
      throw error;
    }
    return directory;
  }

  /**
   * The id of the sled that has joined with this address (`ip:port`); `null` for one without an identity. Throws an
   * {@link UnknownAddress} where no sled is known: nothing is sent to it, least of all in the clear; and what the database does.
   */
  async identityAt(address: string): Promise<string | null> {
    if (!this.#identities.has(address) && performance.now() - this.#readAt > MISS_EVERY_MS) await this.#read();
    const known = this.#identities.get(address);
    if (known === undefined) throw new UnknownAddress('no sled that is not expunged is known at this address');
    return known;
  }

  /** Whether a certificate was revoked, or is of an expunged sled. */
  isRevoked(serial: string): boolean {
    return this.#revoked.has(serial);
  }

  /** Calls `listener` when a sled changed its identity or a certificate was revoked. */
  onChange(listener: () => void): void {
    this.#listeners.add(listener);
  }

  /** Looks no more. */
  close(): void {
    clearInterval(this.#timer);
    this.holder.stop();
  }

  #read(): Promise<void> {
    this.#reading ??= this.#readNow().finally(() => {
      this.#reading = null;
    });
    return this.#reading;
  }

  async #readNow(): Promise<void> {
    const [sleds, revoked] = await Promise.all([readSledDirectory(this.#db), readRevokedSerials(this.#db)]);
    const before = this.#identities;
    const moved = sleds.some((sled) => {
      const known = before.get(sled.address);
      return known !== undefined && known !== (sled.identified ? sled.id : null);
    });
    const changed = moved || revoked.some((serial) => !this.#revoked.has(serial));
    this.#identities = new Map(sleds.map((sled) => [sled.address, sled.identified ? sled.id : null]));
    this.#revoked = new Set(revoked);
    this.#readAt = performance.now();
    if (changed) for (const listener of this.#listeners) listener();
  }
}

/** Says so in the log when sleds have joined, and this process, without the authority, can't speak to them. Never throws. */
export async function warnWithoutAuthority(db: Database, log: Logger): Promise<void> {
  // A database that is away says so elsewhere.
  const sleds = await readSledDirectory(db).catch(() => []);
  const joined = sleds.filter((sled) => sled.identified).map((sled) => sled.address);
  if (joined.length > 0)
    log.error(
      { addresses: joined },
      'these sleds have joined, and can’t be spoken to: start this process with --authority',
    );
}

/**
 * The file descriptors of this process. Some are held back, so that a process that has come to its limit, whatever took the
 * others, can still do what it must: answer, report, renew a lease, end a guest. Looked at once a second, and by whoever was
 * refused one: where there is none left, what may be closed is closed, and where that is not enough the reserve is given up
 * until there is room for it again.
 */
import { closeSync, openSync, readFileSync } from 'node:fs';

/** The part of a process's limit that its reserve is, and the most that it is. */
const RESERVED_PART = 1 / 4;
const MOST_RESERVED = 32;
const LEAST_RESERVED = 4;
/** How many must be free beside the reserve before there is room again. */
const MARGIN = 4;
const LOOK_EVERY_MS = 1_000;
/** What a process may open where its limit can't be known: what most systems give by default. */
const USUAL_LIMIT = 1_024;

const NONE_LEFT: ReadonlySet<unknown> = new Set(['EMFILE', 'ENFILE']);

/** What the reserve asks of the system; a test has its own. */
export interface DescriptorSource {
  /** Takes a descriptor. Throws `EMFILE` where the process, `ENFILE` where the machine has none left. */
  take(): number;
  give(descriptor: number): void;
  /** How many this process may have; `null` where that can't be known now. */
  limit(): number | null;
}

/** The descriptors of this process. */
export const OWN_DESCRIPTORS: DescriptorSource = {
  take: () => openSync('/dev/null', 'r'),
  give: closeSync,
  limit() {
    try {
      return readDescriptorLimit(readFileSync('/proc/self/limits', 'utf8'));
    } catch {
      return null;
    }
  },
};

/** How many files a process may open, by the text of its `/proc/PID/limits`; `null` where it doesn't say. Unlimited is infinite. */
export function readDescriptorLimit(limits: string): number | null {
  const soft = /^Max open files\s+(\d+|unlimited)/m.exec(limits)?.[1];
  if (soft === undefined) return null;
  return soft === 'unlimited' ? Number.POSITIVE_INFINITY : Number(soft);
}

/** The reserve of a process; see the head of this file. Nothing is held before the first {@link hold}. */
export class DescriptorReserve {
  readonly #source: DescriptorSource;
  readonly #reserved: number[] = [];
  readonly #shedders = new Set<() => void>();
  readonly #troubled = new Set<(message: string) => void>();
  #limit: number | null = null;
  #timer: NodeJS.Timeout | undefined;
  /** Why there are none: the system's code. */
  #lacking: string | null = null;

  constructor(source: DescriptorSource = OWN_DESCRIPTORS) {
    this.#source = source;
  }

  /** How many descriptors this process may have. */
  get limit(): number {
    this.#limit ??= this.#source.limit();
    return this.#limit ?? USUAL_LIMIT;
  }

  /** Whether the reserve is given up: what is not needed must not be begun. */
  get isScarce(): boolean {
    return this.#lacking !== null;
  }

  /** What is wrong, in a sentence; `null` where nothing is. */
  get trouble(): string | null {
    return this.#lacking === null ? null : this.#describe(this.#lacking);
  }

  #describe(code: string): string {
    const whose = code === 'ENFILE' ? 'the machine has no more' : `this process may have ${this.limit}`;
    return `no file descriptors left (${code}): ${whose}, and what are held back are for what must go on; raise the limit (LimitNOFILE=, ulimit -n), or end what holds them`;
  }

  /**
   * Holds the reserve, for as long as one of those who asked for it does: until the function that is returned is called.
   * `onTrouble` gets a sentence when there are none left, and when there are again.
   */
  hold(onTrouble: (message: string) => void): () => void {
    // One of its own for each, so that the same function can be given twice.
    const told = (message: string) => onTrouble(message);
    this.#troubled.add(told);
    if (this.#timer === undefined) {
      this.#timer = setInterval(() => this.look(), LOOK_EVERY_MS);
      this.#timer.unref();
      this.look();
    }
    return () => {
      if (!this.#troubled.delete(told) || this.#troubled.size > 0) return;
      clearInterval(this.#timer);
      this.#timer = undefined;
      this.#lacking = null;
      this.#giveUp();
    };
  }

  /** Has `shed` close what may be closed, each time that there are none left. Returns how that is ended. */
  onShortage(shed: () => void): () => void {
    this.#shedders.add(shed);
    return () => void this.#shedders.delete(shed);
  }

  /**
   * Looks whether there are descriptors left, and makes room where there are none. Returns whether it did: then what has just
   * failed for want of one may be tried again. Never throws.
   */
  look(): boolean {
    if (this.#timer === undefined) return false;
    this.#limit = this.#source.limit() ?? this.#limit;
    const wanted = this.#wanted();
    // A limit that was lowered would make the reserve more than what is left for work.
    const surplus = Math.max(0, this.#reserved.length - wanted);
    this.#giveUp(surplus);
    const lacking = this.#takeUpTo(wanted);
    if (lacking === null) {
      this.#change(null);
      return surplus > 0;
    }
    this.#shed();
    const isFull = this.#reserved.length >= wanted;
    if (isFull && this.#probe(1) === null) return true;
    this.#change(lacking);
    this.#giveUp();
    return true;
  }

  /** Why nothing may be begun that needs this many descriptors beside the reserve; `null` where they are free. Never throws. */
  whyNotFor(count: number): string | null {
    this.look();
    let lacking = this.#lacking ?? this.#probe(count);
    if (lacking !== null && this.#lacking === null) {
      this.#shed();
      lacking = this.#probe(count);
    }
    return lacking === null ? null : this.#describe(lacking);
  }

  /** Does something that needs a descriptor; where it fails, and there was none left, once more with the reserve. Throws what it throws. */
  async use<Result>(work: () => Promise<Result>): Promise<Result> {
    try {
      return await work();
    } catch (error) {
      // A name that can't be looked up, for want of one, is said to be unknown: so every failure is a reason to look.
      if (!this.look()) throw error;
      return work();
    }
  }

  #shed(): void {
    for (const shed of this.#shedders) shed();
  }

  #wanted(): number {
    return Math.min(MOST_RESERVED, Math.max(LEAST_RESERVED, Math.floor(this.limit * RESERVED_PART)));
  }

  /** Fills the reserve, or leaves it as it is. Returns why it could not, where there is none left beside it. */
  #takeUpTo(wanted: number): string | null {
    const missing = wanted - this.#reserved.length;
    const taken: number[] = [];
    const lacking = this.#probe(missing === 0 ? 1 : missing + MARGIN, taken);
    if (lacking === null) this.#reserved.push(...taken.splice(0, missing));
    for (const descriptor of taken) this.#source.give(descriptor);
    return lacking;
  }

  /** Takes this many into `taken`, or as many as there are. Returns the system's code where there were fewer. */
  #probe(count: number, taken: number[] | null = null): string | null {
    const own = taken ?? [];
    try {
      for (let more = 0; more < count; more++) own.push(this.#source.take());
      return null;
    } catch (error) {
      const { code } = error as NodeJS.ErrnoException;
      return NONE_LEFT.has(code) ? String(code) : null;
    } finally {
      if (taken === null) for (const descriptor of own) this.#source.give(descriptor);
    }
  }

  #giveUp(count = this.#reserved.length): void {
    for (const descriptor of this.#reserved.splice(0, count)) this.#source.give(descriptor);
  }

  #change(lacking: string | null): void {
    const before = this.#lacking;
    this.#lacking = lacking;
    if ((before === null) === (lacking === null)) return;
    const message = this.trouble ?? 'there are file descriptors again';
    for (const tell of this.#troubled) tell(message);
  }
}

/** The reserve of this process, which all of its parts share. */
export const processDescriptors = new DescriptorReserve();

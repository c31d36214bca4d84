/** What a process has opened: closed in the reverse order, also where it could not be opened to the end. */
export class Opened {
  readonly #closers: (() => unknown)[] = [];
  #closing: Promise<void> | null = null;

  /** Has `close` called when everything is closed; returns what was opened. */
  add<Part>(part: Part, close: (part: Part) => unknown): Part {
    this.#closers.push(() => close(part));
    return part;
  }

  /** Closes all of it, the last first; what can't be closed does not keep the rest. Called again, it waits for the same. */
  close(): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  async #close(): Promise<void> {
    for (const close of this.#closers.reverse()) await Promise.allSettled([Promise.resolve().then(close)]);
  }
}

/** Runs what opens a process's parts, and closes those that it has opened where it throws. */
export async function openAll<Process>(open: (opened: Opened) => Promise<Process>): Promise<Process> {
  const opened = new Opened();
  try {
    return await open(opened);
  } catch (error) {
    await opened.close();
    throw error;
  }
}

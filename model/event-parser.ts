/** Reads server-sent events out of the pieces in which they arrive. Pure. Source: the HTML standard, section 9.2.6. */

/** One event as it was sent. */
export interface RawEvent {
  readonly event: string;
  readonly data: string;
  /** The cursor that it carries; `null`: none. */
  readonly id: string | null;
}

/** Takes text piece by piece, cut anywhere, and gives what is complete. */
export class EventParser {
  #rest = '';
  #event = '';
  #data: string[] = [];
  #id: string | null = null;
  /** The cursor: the id of the last event that was complete; `null` until there is one. */
  lastId: string | null = null;

  /** The events that a piece of text completes. An event without data (an id alone) moves the cursor and is not given. */
  take(text: string): RawEvent[] {
    const events: RawEvent[] = [];
    const lines = (this.#rest + text).split('\n');
    this.#rest = lines.pop() ?? '';
    for (const raw of lines) {
      const line = raw.endsWith('\r') ? raw.slice(0, -1) : raw;
      if (line !== '') {
        this.#takeField(line);
        continue;
      }
      if (this.#id !== null) this.lastId = this.#id;
      if (this.#data.length > 0)
        events.push({ event: this.#event || 'message', data: this.#data.join('\n'), id: this.#id });
      this.#event = '';
      this.#data = [];
      this.#id = null;
    }
    return events;
  }

  #takeField(line: string): void {
    const colon = line.indexOf(':');
    if (colon === 0) return;
    const field = colon === -1 ? line : line.slice(0, colon);
    const value = colon === -1 ? '' : line.slice(colon + 1).replace(/^ /, '');
    if (field === 'event') this.#event = value;
    else if (field === 'data') this.#data.push(value);
    else if (field === 'id' && !value.includes('\0')) this.#id = value;
  }
}

import { stripVTControlCharacters } from 'node:util';
import Table from 'cli-table3';
import { colours } from './format.ts';

/** Prints a value as one line of JSON, for programs. */
export function printJson(value: unknown): void {
  console.log(JSON.stringify(value));
}

/** Lays rows out under their heads, aligned; in colours only where the terminal has them. */
export function table(head: string[], rows: string[][]): string {
  const blank = {
    top: '',
    'top-mid': '',
    'top-left': '',
    'top-right': '',
    bottom: '',
    'bottom-mid': '',
    'bottom-left': '',
    'bottom-right': '',
    left: '',
    'left-mid': '',
    mid: '',
    'mid-mid': '',
    right: '',
    'right-mid': '',
    middle: '  ',
  };
  const drawn = new Table({
    head: head.map((text) => colours.bold(text)),
    chars: blank,
    style: { head: [], border: [], 'padding-left': 0, 'padding-right': 0 },
  });
  drawn.push(...rows);
  return drawn.toString();
}

/** An external state in the colour of its kind. */
export function paintState(state: string): string {
  if (state === 'running') return colours.green(state);
  if (state === 'failed') return colours.red(state);
  if (state === 'stopped') return colours.dim(state);
  return colours.yellow(state);
}

/**
 * A line of text on standard error that is written over again and again, when that is a terminal; nothing otherwise, so
 * that what is piped stays clean.
 */
export class StatusLine {
  readonly #on: boolean;

  constructor(wanted: boolean) {
    this.#on = wanted && process.stderr.isTTY === true;
  }

  show(text: string): void {
    if (!this.#on) return;
    const width = process.stderr.columns ?? 80;
    const plain = stripVTControlCharacters(text);
    // A line that wraps can't be written over.
    process.stderr.write(`\r\u001b[K${plain.length < width ? text : `${plain.slice(0, width - 2)}…`}`);
  }

  clear(): void {
    if (this.#on) process.stderr.write('\r\u001b[K');
  }
}

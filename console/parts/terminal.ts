/** The terminal in which a serial console is shown: loaded only where one is looked at. */
import { Terminal } from '@xterm/xterm';
import './terminal.css';
import { allowStyleAttributes, withStyleSheets } from './strict-document.ts';

allowStyleAttributes();

/** A terminal on the page. */
export interface OpenTerminal {
  readonly write: (bytes: Uint8Array) => void;
  /** Empties it, for a guest that has begun anew. */
  readonly reset: () => void;
  readonly close: () => void;
}

/**
 * Opens a terminal that only shows. What a guest prints is text of a stranger: it can colour and move, and that is all; links,
 * titles and what asks the terminal to answer come to nothing.
 */
export function openTerminal(element: HTMLElement, label: string): OpenTerminal {
  const terminal = new Terminal({
    disableStdin: true,
    convertEol: true,
    screenReaderMode: true,
    scrollback: 5_000,
    fontSize: 13,
    fontFamily: 'ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace',
    // A link of a guest leads nowhere.
    linkHandler: { activate: () => {}, allowNonHttpProtocols: false },
    minimumContrastRatio: 4.5,
    theme: { background: '#10181c', foreground: '#e6edef', cursor: '#10181c' },
  });
  withStyleSheets(() => terminal.open(element));
  terminal.textarea?.setAttribute('aria-label', label);
  const fitToRoom = () => {
    const cell = element.querySelector('.xterm-screen')?.getBoundingClientRect();
    if (cell === undefined || cell.width === 0) return;
    const columns = Math.floor((element.clientWidth - 20) / (cell.width / terminal.cols));
    const rows = Math.floor((element.clientHeight - 8) / (cell.height / terminal.rows));
    if (columns > 1 && rows > 1 && (columns !== terminal.cols || rows !== terminal.rows))
      terminal.resize(columns, rows);
  };
  fitToRoom();
  const sizes = new ResizeObserver(fitToRoom);
  sizes.observe(element);
  return {
    write: (bytes) => terminal.write(bytes),
    reset: () => terminal.reset(),
    close: () => {
      sizes.disconnect();
      terminal.dispose();
    },
  };
}

import { useEffect, useRef, useState } from 'preact/hooks';
import { ApiProblem, api, done, messageOf } from '../api/client.ts';
import { onInstanceEvent } from '../store/fleet.ts';
import type { OpenTerminal } from './terminal.ts';

/** How often it is read, in milliseconds, when it has nothing new. */
const READ_EVERY_MS = 500;
/** How long it waits at most where it can't be read, in milliseconds, unless something happens to the instance. */
const LONGEST_PAUSE_MS = 10_000;
/** How much of it is shown at first, in bytes. */
const FIRST_BYTES = 64 * 1024;

/** An instance's serial console, live, also across a migration: the offset of its bytes goes on counting there. */
export function SerialConsole({ instanceId, name }: { instanceId: string; name: string }) {
  const element = useRef<HTMLDivElement>(null);
  const [status, setStatus] = useState('connecting');
  useEffect(() => {
    const ending = new AbortController();
    let terminal: OpenTerminal | null = null;
    void import('./terminal.ts').then(
      ({ openTerminal }) => {
        if (ending.signal.aborted || element.current === null) return;
        terminal = openTerminal(element.current, `Serial console of ${name}`);
        void follow(instanceId, terminal, setStatus, ending.signal);
      },
      () => setStatus('the terminal could not be loaded'),
    );
    return () => {
      ending.abort();
      terminal?.close();
    };
  }, [instanceId, name]);
  return (
    <section class="serial" aria-label="Serial console">
      <header>
        <h2>Serial console</h2>
        {status === 'live' && <span class="stream-live">● live</span>}
      </header>
      {status !== 'live' && <p role="status">{status}</p>}
      <div class="terminal" ref={element} />
    </section>
  );
}

/** Reads until the signal is aborted. What is temporary is waited out: a hand-over, a silent sled, a guest that is off. */
async function follow(
  instance: string,
  terminal: OpenTerminal,
  onStatus: (status: string) => void,
  signal: AbortSignal,
): Promise<void> {
  let offset: number | null = null;
  let pauseMs = READ_EVERY_MS;
  while (!signal.aborted) {
    let read = 0;
    try {
      const query: { most_recent: number } | { from_start: number } =
        offset === null ? { most_recent: FIRST_BYTES } : { from_start: offset };
      const piece: { data: number[]; last_byte_offset: number } = await done(
        api.GET('/v1/instances/{instance}/serial-console', { params: { path: { instance }, query }, signal }),
      );
      if (offset !== null && piece.last_byte_offset < offset) {
        terminal.reset();
        offset = null;
        continue;
      }
      offset = piece.last_byte_offset;
      read = piece.data.length;
      terminal.write(Uint8Array.from(piece.data));
      pauseMs = READ_EVERY_MS;
      onStatus('live');
    } catch (error) {
      if (signal.aborted) return;
      if (error instanceof ApiProblem && [401, 403, 404].includes(error.status)) return onStatus(error.message);
      onStatus(messageOf(error));
      // A guest that has none, as on a simulated sled, is not asked for it again and again.
      if (await happensWithin(pauseMs, instance)) pauseMs = READ_EVERY_MS;
      else pauseMs = Math.min(LONGEST_PAUSE_MS, pauseMs * 2);
      continue;
    }
    if (read === 0 || document.visibilityState === 'hidden')
      await new Promise((resolve) => setTimeout(resolve, READ_EVERY_MS));
  }
}

/** Waits; less long where something happens to the instance, and says whether it did. */
function happensWithin(ms: number, instance: string): Promise<boolean> {
  return new Promise((resolve) => {
    const end = (happened: boolean) => {
      clearTimeout(timer);
      stopListening();
      resolve(happened);
    };
    const timer = setTimeout(end, ms, false);
    const stopListening = onInstanceEvent((id) => id === instance && end(true));
  });
}

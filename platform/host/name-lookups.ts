/**
 * The names of hosts, looked up by the system without taking its threads away from everything else: a name service that hangs holds
 * a thread for as long as the system tries, whoever has given up meanwhile, and a process has four (libuv's pool), which the
 * names of PostgreSQL and Temporal and all files need, too.
 */
import { type LookupAddress, type LookupOptions, lookup as systemLookup } from 'node:dns';
import type { LookupFunction } from 'node:net';

/** How many names are looked up at a time. */
const AT_ONCE = 2;
/** How long one waits for its turn, in milliseconds. */
const WAIT_MS = 2_000;

type Callback = (error: NodeJS.ErrnoException | null, address: string | LookupAddress[], family?: number) => void;
type SystemLookup = (hostname: string, options: LookupOptions, callback: Callback) => void;

interface Wanted {
  readonly begin: () => void;
  readonly fail: () => void;
}

/**
 * A `lookup` for connections: `atOnce` names are looked up at a time, and one only once, whoever asks for it meanwhile. Who has
 * waited `waitMs` milliseconds for its turn gets the error `EAI_AGAIN`. `lookUp` is the system's by default.
 */
export function nameLookups({
  atOnce = AT_ONCE,
  waitMs = WAIT_MS,
  lookUp = systemLookup as SystemLookup,
} = {}): LookupFunction {
  const underWay = new Map<string, Callback[]>();
  const waiting: Wanted[] = [];
  let running = 0;

  const runNext = () => {
    while (running < atOnce) {
      const next = waiting.shift();
      if (next === undefined) return;
      next.begin();
    }
  };

  return (hostname, options, callback) => {
    const key = JSON.stringify([
      hostname,
      options.family ?? 0,
      options.hints ?? 0,
      options.all ?? false,
      options.order,
    ]);
    const joined = underWay.get(key);
    if (joined !== undefined) {
      joined.push(callback as Callback);
      return;
    }
    const callbacks = [callback as Callback];
    underWay.set(key, callbacks);
    const settle: Callback = (...outcome) => {
      underWay.delete(key);
      for (const each of callbacks) each(...outcome);
    };
    const timer = setTimeout(() => wanted.fail(), waitMs);
    timer.unref();
    const wanted: Wanted = {
      begin() {
        clearTimeout(timer);
        running += 1;
        lookUp(hostname, options, (...outcome) => {
          running -= 1;
          settle(...outcome);
          runNext();
        });
      },
      fail() {
        waiting.splice(waiting.indexOf(wanted), 1);
        const error = new Error(`the name "${hostname}" could not be looked up: the name service does not answer`);
        settle(Object.assign(error, { code: 'EAI_AGAIN', syscall: 'getaddrinfo', hostname }), '');
      },
    };
    waiting.push(wanted);
    runNext();
  };
}

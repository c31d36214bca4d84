/**
 * The names of hosts, looked up by the system without taking its threads away from everything else: a name service that hangs holds
 * a thread for as long as the system tries, whoever has given up meanwhile, and a process has four (libuv's pool), which the
 * names of PostgreSQL and Temporal and all files need, too. Nor do names that hang keep the others from being looked up: these
 * have a turn of their own, and a name that was found before is at its last address for as long as nobody can say otherwise.
 * Whether somebody else is there now shows when he is spoken to.
 */
import { type LookupAddress, type LookupOptions, lookup as systemLookup } from 'node:dns';
import type { LookupFunction } from 'node:net';

/** How many names are looked up at a time. */
const AT_ONCE = 2;
/** How long one waits for its turn, in milliseconds. */
const WAIT_MS = 2_000;
/** After how long a look-up counts as one that hangs, in milliseconds; who asks can connect within his two seconds after that. */
const HANGS_AFTER_MS = 500;
/** How many addresses are remembered. */
const MOST_KEPT = 16_384;

type Callback = (error: NodeJS.ErrnoException | null, address: string | LookupAddress[], family?: number) => void;
type SystemLookup = (hostname: string, options: LookupOptions, callback: Callback) => void;
type Found = readonly [address: string | LookupAddress[], family?: number | undefined];

interface Asked {
  readonly callbacks: Callback[];
  /** Whether they have waited for as long as a look-up may take. */
  isLate: boolean;
}

interface Wanted {
  readonly hostname: string;
  readonly key: string;
  readonly begin: () => void;
  readonly fail: () => void;
}

/**
 * A `lookup` for connections: `atOnce` names are looked up at a time, one fewer (one at the least) of those that hung when they
 * were looked up last, and one only once, whoever asks for it meanwhile. Where a look-up takes longer than `hangsAfterMs`
 * milliseconds, or fails otherwise than by word that there is no such name, who asked gets the address that was found last. Who
 * has waited `waitMs` milliseconds for a turn of a name that was never found gets the error `EAI_AGAIN`. `lookUp` is the
 * system's by default.
 */
export function nameLookups({
  atOnce = AT_ONCE,
  waitMs = WAIT_MS,
  hangsAfterMs = HANGS_AFTER_MS,
  lookUp = systemLookup as SystemLookup,
} = {}): LookupFunction {
  const underWay = new Map<string, Asked>();
  const waiting: Wanted[] = [];
  /** What was found last, the newest at the end. */
  const kept = new Map<string, Found>();
  /** The names whose last look-up hung, or hangs. */
  const hung = new Set<string>();
  const running: Wanted[] = [];
  const mostHung = Math.max(1, atOnce - 1);

  const isHung = ({ hostname }: Wanted) => hung.has(hostname);
  const nextOne = (): Wanted | undefined => {
    const well = waiting.filter((each) => !isHung(each));
    const next = well.find(({ key }) => kept.has(key)) ?? well[0];
    return next ?? (running.filter(isHung).length < mostHung ? waiting[0] : undefined);
  };
  const runNext = () => {
    while (running.length < atOnce) {
      const next = nextOne();
      if (next === undefined) return;
      waiting.splice(waiting.indexOf(next), 1);
      next.begin();
    }
  };
  const keep = (key: string, found: Found | null) => {
    kept.delete(key);
    if (found !== null) kept.set(key, found);
    for (const oldest of kept.keys()) {
      if (kept.size <= MOST_KEPT) break;
      kept.delete(oldest);
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
    const last = kept.get(key);
    const joined = underWay.get(key);
    if (last !== undefined && (hung.has(hostname) || joined?.isLate)) {
      // It is looked up all the same, so that it is known when it can be again.
      setImmediate(() => (callback as Callback)(null, ...last));
      if (joined === undefined) lookUpInTurn([]);
      return;
    }
    if (joined === undefined) lookUpInTurn([callback as Callback]);
    else joined.callbacks.push(callback as Callback);

    function lookUpInTurn(callbacks: Callback[]): void {
      const asked: Asked = { callbacks, isLate: false };
      underWay.set(key, asked);
      const answer: Callback = (...outcome) => {
        for (const each of callbacks.splice(0)) each(...outcome);
      };
      const answerKept = () => {
        const found = kept.get(key);
        if (found !== undefined) answer(null, ...found);
      };
      const turnTimer = setTimeout(() => wanted.fail(), waitMs).unref();
      // A name whose turn does not come hangs as well for who asks, though not by its own fault.
      const keptTimer = setTimeout(() => {
        asked.isLate = true;
        answerKept();
      }, hangsAfterMs).unref();
      const settle: Callback = (error, ...found) => {
        clearTimeout(turnTimer);
        clearTimeout(keptTimer);
        underWay.delete(key);
        if (error !== null) answerKept();
        answer(error, ...found);
      };
      const wanted: Wanted = {
        hostname,
        key,
        begin() {
          clearTimeout(turnTimer);
          running.push(wanted);
          let hangs = false;
          const hangTimer = setTimeout(() => {
            hangs = true;
            hung.add(hostname);
          }, hangsAfterMs).unref();
          lookUp(hostname, options, (error, ...found) => {
            clearTimeout(hangTimer);
            running.splice(running.indexOf(wanted), 1);
            if (!hangs) hung.delete(hostname);
            if (error === null) keep(key, found);
            else if (error.code === 'ENOTFOUND') keep(key, null);
            settle(error, ...found);
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
    }
  };
}

/**
 * Faults at random on real sled agent processes, their watchdogs, their network, the API and the database, while instances
 * run and migrate: at no moment may two copies of one guest execute, by the agents' own journals. Then everything comes
 * back, every instance runs again, and the doctor finds nothing.
 */
import { readdirSync, readFileSync } from 'node:fs';
import { setTimeout as pause } from 'node:timers/promises';
import { waitUntil } from '../../platform/host/child-process.ts';
import { Dice } from '../soak/plan.ts';
import { type FencedSled, FencingWorld, STRANGE_CLOCK } from '../support/fencing-world.ts';

const LEASE_MS = 4_000;
const SLEDS = 4;
const INSTANCES = 8;
/** So many sleds are left alone at every moment: somebody must be there to take the guests. */
const SPARED_SLEDS = 2;

const SLED_FAULTS = ['cut', 'cut-up', 'no-answers', 'cut-down', 'pause', 'stuck', 'kill', 'kill-watchdog'] as const;
const PLANE_FAULTS = ['api-away', 'database-away'] as const;
type FaultKind = (typeof SLED_FAULTS)[number] | (typeof PLANE_FAULTS)[number] | 'migrate';

export interface RandomFencingReport {
  readonly seed: number;
  readonly seconds: number;
  /** How often each fault was begun, and how many migrations were asked for. */
  readonly faults: Readonly<Partial<Record<FaultKind, number>>>;
  /** How often a sled was declared dead. */
  readonly declarations: number;
  /** How often a guest began to execute. */
  readonly guestsBegun: number;
}

/**
 * Runs for `durationMs` milliseconds. The same seed draws the same faults; when they hit, the machine decides. Throws when
 * a guest ran twice, when something does not come back, or with what the doctor finds.
 */
export async function runRandomFencing(options: {
  readonly seed: number;
  readonly durationMs: number;
  readonly print: (message: string) => void;
}): Promise<RandomFencingReport> {
  const dice = new Dice(options.seed);
  const counts: Partial<Record<FaultKind, number>> = {};
  const count = (kind: FaultKind) => {
    counts[kind] = (counts[kind] ?? 0) + 1;
  };
  const pending = new Set<Promise<void>>();
  const world = await FencingWorld.start({ sleds: SLEDS, leaseMs: LEASE_MS, agentEnv: STRANGE_CLOCK });
  try {
    const instances: string[] = [];
    while (instances.length < INSTANCES) instances.push(await world.running());
    options.print(`${SLEDS} sleds, ${INSTANCES} instances, a lease of ${LEASE_MS / 1000} s`);
    const afflicted = new Set<FencedSled>();
    let planeAway = false;
    const failures: unknown[] = [];
    const begin = (work: Promise<void>) => {
      const done = work.catch((error: unknown) => void failures.push(error)).finally(() => pending.delete(done));
      pending.add(done);
    };
    const begun = performance.now();
    let witnessedMs = begun;
    while (performance.now() - begun < options.durationMs) {
      const durationMs = dice.between(LEASE_MS / 8, LEASE_MS * 3);
      const roll = dice.between(0, 1);
      const kind = dice.pick(SLED_FAULTS);
      const plane = dice.pick(PLANE_FAULTS);
      const sled = dice.pick(world.sleds);
      const instance = dice.pick(instances);
      if (roll < 0.3) {
        count('migrate');
        // Refused as often as not: what a user may ask at such times.
        begin(
          world.client.migrateInstance(instance, sled.id, { waitSeconds: 0 }).then(
            () => {},
            () => {},
          ),
        );
      } else if (roll < 0.38 && !planeAway) {
        planeAway = true;
        count(plane);
        options.print(`${plane} for ${(durationMs / 1000).toFixed(1)} s`);
        begin(
          afflictPlane(world, plane, durationMs).finally(() => {
            planeAway = false;
          }),
        );
      } else if (!afflicted.has(sled) && afflicted.size < SLEDS - SPARED_SLEDS) {
        afflicted.add(sled);
        count(kind);
        options.print(`${kind} ${sled.name} for ${(durationMs / 1000).toFixed(1)} s`);
        begin(afflictSled(sled, kind, durationMs).finally(() => afflicted.delete(sled)));
      }
      await pause(dice.between(100, 1_500));
      if (performance.now() - witnessedMs > 2_000) {
        world.witness();
        witnessedMs = performance.now();
      }
    }
    const seconds = Math.round((performance.now() - begun) / 1000);
    await Promise.all(pending);
    if (failures.length > 0) throw failures[0];
    options.print('all faults are over: everything has to come back');
    await world.startDatabase();
    await world.startApi();
    for (const sled of world.sleds) heal(sled);
    for (const sled of world.sleds) await world.inService(sled);
    for (const id of instances) await world.runs(id);
    world.witness();
    await world.examined();
    const guestsBegun = world.sleds.flatMap((sled) => sled.journal()).filter(({ event }) => event === 'began').length;
    return { seed: options.seed, seconds, faults: counts, declarations: await world.declarations(), guestsBegun };
  } finally {
    await Promise.all(pending);
    await world.stop();
  }
}

async function afflictPlane(
  world: FencingWorld,
  what: (typeof PLANE_FAULTS)[number],
  durationMs: number,
): Promise<void> {
  if (what === 'api-away') {
    await world.stopApi();
    await pause(durationMs);
    await world.startApi();
  } else {
    await world.killDatabase();
    await pause(durationMs);
    await world.startDatabase();
  }
}

async function afflictSled(sled: FencedSled, kind: (typeof SLED_FAULTS)[number], durationMs: number): Promise<void> {
  const pid = sled.runs ? sled.pid : null;
  switch (kind) {
    case 'cut':
      sled.up.set('cut');
      sled.down.set('cut');
      break;
    case 'cut-up':
      sled.up.set('cut');
      break;
    case 'no-answers':
      sled.up.set('no-answers');
      break;
    case 'cut-down':
      sled.down.set('cut');
      break;
    case 'pause':
      sled.signal('SIGSTOP');
      break;
    case 'stuck':
      sled.signal('SIGUSR2');
      break;
    case 'kill':
      sled.signal('SIGKILL');
      break;
    case 'kill-watchdog':
      for (const pid of watchdogsOf(sled)) process.kill(pid, 'SIGKILL');
      break;
  }
  await pause(durationMs);
  // Two faults at once that nothing on the machine could survive are not defended: a stuck agent whose watchdog is killed,
  // or a paused one whose next watchdog is not up yet.
  if (kind === 'stuck')
    await waitUntil(() => !sled.runs || sled.pid !== pid, `the agent of ${sled.name} is stuck`, LEASE_MS * 3).catch(
      () =>
        // It had no lease when it got stuck: nothing ran that its watchdog would kill it for. Its operator starts it again.
        sled.signal('SIGKILL', true),
    );
  if (kind === 'kill-watchdog') await pause(LEASE_MS * 1.25);
  heal(sled);
}

/** Ends whatever befell a sled. An agent that was paused or stuck for too long is dead by then, and starts again. */
function heal(sled: FencedSled): void {
  sled.up.set('pass');
  sled.down.set('pass');
  sled.signal('SIGCONT');
  sled.start();
}

/** The watchdogs of a sled's agent, by their arguments. */
function watchdogsOf(sled: FencedSled): number[] {
  if (!sled.runs) return [];
  return readdirSync('/proc')
    .filter((entry) => /^\d+$/.test(entry))
    .filter((entry) => {
      try {
        const args = readFileSync(`/proc/${entry}/cmdline`, 'utf8').split('\0');
        return args.some((arg) => arg.endsWith('/watchdog.ts')) && args.includes(String(sled.pid));
      } catch {
        return false;
      }
    })
    .map(Number);
}

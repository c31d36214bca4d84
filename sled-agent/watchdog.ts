/**
 * The watchdog of a sled agent with fencing: a process of its own, with its own clock and no other work. When the lease has
 * lapsed and the agent has not powered its guests off, it kills the agent (stuck or paused, it must not come back to
 * half-done work), and then every process that works below the folder of the VMs. Simulated guests end with the agent.
 *
 * It knows that the agent is gone by the end of its standard input, which only the agent holds open. There it also hears
 * each lease, so that a disk that is full or fails ends no guest whose lease is renewed. It reads the lease from the file too,
 * so that an agent that is started again has the clock of the one before until it has renewed.
 */
import { constants, setPriority } from 'node:os';
import { parseArgs } from 'node:util';
import { watchdogGraceMs } from '../model/lease.ts';
import { asDiskError, Disk } from './disk.ts';
import { closingOf } from './guest-log.ts';
import { bootId, type LeaseFile, monotonicMs, parseLease, readLease } from './lease-file.ts';
import { findProcessesBelow, worksIn } from './qemu/qemu-program.ts';

const { values } = parseArgs({
  options: {
    lease: { type: 'string' },
    'agent-pid': { type: 'string' },
    sequence: { type: 'string' },
    vms: { type: 'string' },
    'guest-log': { type: 'string' },
  },
});
const agentPid = Number(values['agent-pid']);
/** The number of the lease that was the last one when the agent started this watchdog. */
const firstSequence = Number(values.sequence ?? 0);
const leasePath = values.lease;
if (leasePath === undefined || !Number.isInteger(agentPid) || agentPid <= 1)
  throw new Error('the watchdog is started by a sled agent with fencing');

/** How often it looks at the lease where there is none to wait for, in milliseconds. */
const IDLE_MS = 100;
/** How long it waits before it looks again whether what it has killed is gone, in milliseconds. */
const KILL_AGAIN_MS = 20;
/** How often it tries again to write to the guest log, in milliseconds. */
const WRITE_AGAIN_MS = 1_000;

const boot = bootId();
const disk = new Disk();
let agentGone = false;
let wake = () => {};
/** The last lease that the agent told, and the last one that was read. */
const last: { heard: LeaseFile | null; read: LeaseFile | null } = { heard: null, read: null };
let rest = '';
process.stdin.setEncoding('utf8').on('data', (text: string) => {
  const lines = (rest + text).split('\n');
  rest = lines.pop() ?? '';
  for (const line of lines) last.heard = parseLease(line) ?? last.heard;
  wake();
});
for (const event of ['end', 'close', 'error'] as const)
  process.stdin.on(event, () => {
    agentGone = true;
    wake();
  });
// Whoever ends the agent in order must not take the watchdog away from the guests that live on.
for (const signal of ['SIGTERM', 'SIGINT', 'SIGHUP'] as const) process.on(signal, () => {});
process.stdout.on('error', () => {});
try {
  setPriority(constants.priority.PRIORITY_HIGHEST);
} catch {
  // This user may not raise a priority.
}

process.stdout.write('watching\n');
for (;;) {
  readFromDisk();
  if (agentGone && values.vms === undefined) {
    await endGuestLog('its sled agent ended');
    process.exit(0);
  }
  // The agent's successor waited for a watchdog of its own before it wrote its process id to the lease.
  if (agentGone && last.read !== null && last.read.agentPid !== agentPid && last.read.sequence > firstSequence)
    process.exit(0);
  if (agentGone && values.vms !== undefined && processesBelow(values.vms)?.size === 0) process.exit(0);
  let lease = currentLease();
  let actsAt = actsAtMs(lease);
  if (actsAt !== null && monotonicMs() >= actsAt) {
    // What the agent has told meanwhile, where this process was paused, is heard first.
    for (let turn = 0; turn < 2; turn++) await new Promise((resolve) => setImmediate(resolve));
    readFromDisk();
    lease = currentLease();
    actsAt = actsAtMs(lease);
    if (actsAt !== null && monotonicMs() >= actsAt) {
      await powerOff();
      process.exit(0);
    }
  }
  const now = monotonicMs();
  const untilMs = actsAt === null ? IDLE_MS : Math.min(actsAt - now, (lease?.leaseMs ?? 0) / 10);
  await new Promise<void>((resolve) => {
    const timer = setTimeout(resolve, Math.max(1, untilMs));
    wake = () => {
      clearTimeout(timer);
      resolve();
    };
  });
}

function readFromDisk(): void {
  try {
    last.read = readLease(leasePath as string) ?? last.read;
  } catch (error) {
    // The last lease that was read, or heard, counts.
    log(`the lease can't be read: ${error instanceof Error ? error.message : error}`);
  }
}

/** What counts: of what this agent's own leases are, the newest; before there is one, what an earlier agent has left. */
function currentLease(): LeaseFile | null {
  const { heard, read } = last;
  if (heard === null) return read;
  return read !== null && read.agentPid === agentPid && read.sequence > heard.sequence ? read : heard;
}

/** When the guests are powered off, by the monotonic clock; `null` where there is no lease to wait for. */
function actsAtMs(lease: LeaseFile | null): number | null {
  const endsAt = lease !== null && lease.bootId === boot ? lease.endsAtMs : null;
  // A dead agent does nothing by itself: there is nothing to wait for.
  return endsAt === null ? null : endsAt + (agentGone ? 0 : watchdogGraceMs(lease?.leaseMs ?? 0));
}

/** The processes of guests; `null` when that can't be known now: then there may be some. */
function processesBelow(folder: string): Map<string, number> | null {
  try {
    return findProcessesBelow(folder);
  } catch (error) {
    if (asDiskError(error) === null) throw error;
    return null;
  }
}

async function powerOff(): Promise<void> {
  log(
    `the lease has lapsed${agentGone ? '' : `, and the sled agent (${agentPid}) did not power off its guests: it is killed`}`,
  );
  // While the agent holds the pipe open, no other process can have its id.
  while (!agentGone) {
    kill(agentPid);
    await new Promise((resolve) => setTimeout(resolve, KILL_AGAIN_MS));
  }
  for (;;) {
    const found = values.vms === undefined ? new Map<string, number>() : processesBelow(values.vms);
    if (found?.size === 0) break;
    const left = found ?? [];
    for (const [folder, pid] of left) if (worksIn(pid, `${values.vms}/${folder}`)) kill(pid);
    await new Promise((resolve) => setTimeout(resolve, KILL_AGAIN_MS));
  }
  await endGuestLog('its lease lapsed: the watchdog powered it off');
}

/** Writes that no guest executes any more; as long as the disk takes nothing, again and again: there is nothing else to do. */
async function endGuestLog(reason: string): Promise<void> {
  const file = values['guest-log'];
  if (file === undefined) return;
  const close = closingOf(disk, file, reason);
  for (;;) {
    try {
      close();
      return;
    } catch (error) {
      log(`the guest log can't be written: ${error instanceof Error ? error.message : error}`);
      if (asDiskError(error)?.mayPass !== true) return;
      await new Promise((resolve) => setTimeout(resolve, WRITE_AGAIN_MS));
    }
  }
}

function kill(pid: number): void {
  try {
    process.kill(pid, 'SIGKILL');
  } catch {
    // It has just ended by itself.
  }
}

function log(message: string): void {
  process.stderr.write(`${new Date().toISOString()} ${message}\n`);
}

/**
 * The watchdog of a sled agent with fencing: a process of its own, with its own clock and no other work. When the lease has
 * lapsed and the agent has not powered its guests off, it kills the agent (stuck or paused, it must not come back to
 * half-done work), and then every process that works below the folder of the VMs. Simulated guests end with the agent.
 *
 * It knows that the agent is gone by the end of its standard input, which only the agent holds open. It reads the lease
 * from the file, so that an agent that is started again has the clock of the one before until it has renewed.
 */
import { constants, setPriority } from 'node:os';
import { parseArgs } from 'node:util';
import { watchdogGraceMs } from '../model/lease.ts';
import { closeGuestLog } from './guest-log.ts';
import { bootId, type LeaseFile, monotonicMs, readLease } from './lease-file.ts';
import { findProcessesBelow, worksIn } from './qemu/qemu-program.ts';

const { values } = parseArgs({
  options: {
    lease: { type: 'string' },
    'agent-pid': { type: 'string' },
    vms: { type: 'string' },
    'guest-log': { type: 'string' },
  },
});
const agentPid = Number(values['agent-pid']);
const leasePath = values.lease;
if (leasePath === undefined || !Number.isInteger(agentPid) || agentPid <= 1)
  throw new Error('the watchdog is started by a sled agent with fencing');

/** How often it looks at the lease where there is none to wait for, in milliseconds. */
const IDLE_MS = 100;
/** How long it waits before it looks again whether what it has killed is gone, in milliseconds. */
const KILL_AGAIN_MS = 20;

const boot = bootId();
let agentGone = false;
let wake = () => {};
process.stdin.resume();
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

let lease: LeaseFile | null = null;
process.stdout.write('watching\n');
for (;;) {
  try {
    lease = readLease(leasePath) ?? lease;
  } catch (error) {
    // The last lease that was read counts: an agent that can't write down its renewals has none.
    log(`the lease can't be read: ${error instanceof Error ? error.message : error}`);
  }
  if (agentGone && values.vms === undefined) {
    endGuestLog('its sled agent ended');
    process.exit(0);
  }
  // The agent's successor waited for a watchdog of its own before it wrote its process id to the lease.
  if (agentGone && lease !== null && lease.agentPid !== agentPid) process.exit(0);
  if (agentGone && values.vms !== undefined && findProcessesBelow(values.vms).size === 0) process.exit(0);
  const endsAt = lease !== null && lease.bootId === boot ? lease.endsAtMs : null;
  // A dead agent does nothing by itself: there is nothing to wait for.
  const actsAt = endsAt === null ? null : endsAt + (agentGone ? 0 : watchdogGraceMs(lease?.leaseMs ?? 0));
  const now = monotonicMs();
  if (actsAt !== null && now >= actsAt) {
    await powerOff();
    process.exit(0);
  }
  const untilMs = actsAt === null ? IDLE_MS : Math.min(actsAt - now, (lease?.leaseMs ?? 0) / 10);
  await new Promise<void>((resolve) => {
    const timer = setTimeout(resolve, Math.max(1, untilMs));
    wake = () => {
      clearTimeout(timer);
      resolve();
    };
  });
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
    const left = values.vms === undefined ? [] : [...findProcessesBelow(values.vms)];
    if (left.length === 0) break;
    for (const [folder, pid] of left) if (worksIn(pid, `${values.vms}/${folder}`)) kill(pid);
    await new Promise((resolve) => setTimeout(resolve, KILL_AGAIN_MS));
  }
  endGuestLog('its lease lapsed: the watchdog powered it off');
}

function endGuestLog(reason: string): void {
  if (values['guest-log'] !== undefined) closeGuestLog(values['guest-log'], reason);
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

/**
 * The lease as the agent, its watchdog and a restarted agent share it: a small file that is replaced as a whole. Its
 * times are those of the monotonic clock, which all processes of a machine share until it is booted again.
 */
import { closeSync, fsyncSync, openSync, readFileSync, renameSync, writeFileSync } from 'node:fs';
import { z } from 'zod';

const leaseFile = z.object({
  /** Which boot of the machine the times belong to. */
  bootId: z.string(),
  /** When the lease ends; `null` while nothing runs that it would be for. */
  endsAtMs: z.number().nullable(),
  leaseMs: z.number(),
  sledId: z.string().nullable(),
  /** The epoch of the sled in the control plane's last answer. */
  epoch: z.number().nullable(),
  /** The agent that writes this file: a watchdog of an earlier one leaves when its own agent is gone. */
  agentPid: z.number(),
});
export type LeaseFile = z.infer<typeof leaseFile>;

/** The monotonic clock, in milliseconds: on Linux since boot, whatever the wall clock says, and the same in every process. */
export function monotonicMs(): number {
  return Number(process.hrtime.bigint()) / 1e6;
}

/** What identifies this boot of the machine; empty where the system has no such thing. */
export function bootId(): string {
  try {
    return readFileSync('/proc/sys/kernel/random/boot_id', 'utf8').trim();
  } catch {
    return '';
  }
}

/** Writes the lease: it is on disk when this returns. Throws what the file system says: then nobody may count on it. */
export function writeLease(path: string, lease: LeaseFile): void {
  const file = openSync(`${path}.new`, 'w');
  try {
    writeFileSync(file, JSON.stringify(lease));
    fsyncSync(file);
  } finally {
    closeSync(file);
  }
  renameSync(`${path}.new`, path);
}

/** Reads the lease; `null` when none was ever written. Throws when there is one that can't be read. */
export function readLease(path: string): LeaseFile | null {
  let text: string;
  try {
    text = readFileSync(path, 'utf8');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return null;
    throw error;
  }
  return leaseFile.parse(JSON.parse(text));
}

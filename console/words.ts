/** How figures, times and states are put into words. Pure. */
import type { ExternalState } from '../model/states.ts';
import type { Sled } from './api/types.ts';

const UNITS = ['B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB'] as const;

/** A size in bytes, in the largest unit in which it is at least one. */
export function formatBytes(bytes: number): string {
  let [value, unit] = [bytes, 0];
  while (value >= 1024 && unit < UNITS.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${value >= 100 || Number.isInteger(value) ? Math.round(value) : value.toFixed(1)} ${UNITS[unit]}`;
}

/** A length of time in milliseconds, for people. */
export function formatDuration(ms: number): string {
  if (ms < 1_000) return `${Math.round(ms)} ms`;
  const seconds = ms / 1000;
  if (seconds < 60) return `${seconds < 10 ? seconds.toFixed(1) : Math.round(seconds)} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return seconds % 60 < 1 ? `${minutes} min` : `${minutes} min ${Math.floor(seconds % 60)} s`;
  const hours = Math.floor(minutes / 60);
  return hours < 48 ? `${hours} h ${minutes % 60} min` : `${Math.floor(hours / 24)} days`;
}

/** The time of day where it is today's, else with its day. `now` is for tests. */
export function formatTime(time: string, now: Date = new Date()): string {
  const at = new Date(time);
  const day = at.toDateString() === now.toDateString() ? '' : `${at.toLocaleDateString()} `;
  return `${day}${at.toLocaleTimeString()}`;
}

/** A count with its noun; an irregular plural is given. */
export function counted(count: number, noun: string, plural = `${noun}s`): string {
  return `${count.toLocaleString('en')} ${count === 1 ? noun : plural}`;
}

/** The sign beside a state's word, so that colour is not alone. */
export const STATE_SIGNS: Readonly<Record<ExternalState, string>> = {
  creating: '◌',
  stopped: '■',
  failed: '✖',
  starting: '◔',
  running: '●',
  rebooting: '↻',
  migrating: '⇄',
  stopping: '◕',
};

/** How a sled stands, in one or two words, and how much that matters. */
export function sledStanding(sled: Sled): { readonly word: string; readonly tone: 'good' | 'warn' | 'bad' } {
  if (sled.policy.kind === 'expunged') return { word: 'expunged', tone: 'bad' };
  if (sled.declared_dead !== null) return { word: 'declared dead', tone: 'bad' };
  if (sled.silent_since != null) return { word: 'silent', tone: 'bad' };
  if (sled.lease !== null && sled.lease.standing !== 'held')
    return { word: `lease ${sled.lease.standing}`, tone: 'bad' };
  if ((sled.agent?.trouble.length ?? 0) > 0) return { word: 'in trouble', tone: 'warn' };
  return { word: 'answers', tone: 'good' };
}

/** A sled's policy in words. */
export function sledPolicy(sled: Sled): string {
  if (sled.policy.kind === 'expunged') return 'expunged';
  return sled.policy.provision_policy === 'provisionable' ? 'takes new instances' : 'takes no new instances';
}

/** What a sled's lease comes to, in words. */
export function leaseWords(sled: Sled): string {
  if (sled.lease === null) return 'no fencing';
  return `lease ${sled.lease.standing}, ${sled.lease.seconds} s`;
}

/** A link that may be followed: of the web, nothing that runs. `null` for another one. */
export function safeLink(address: string | null | undefined): string | null {
  return address != null && /^https?:\/\//i.test(address) ? address : null;
}

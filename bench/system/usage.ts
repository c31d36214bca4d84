/** What processes use, from Linux's /proc. */
import { readdir, readFile } from 'node:fs/promises';

/** Linux counts CPU time in hundredths of a second, whatever the kernel's own tick (`sysconf(_SC_CLK_TCK)`). */
const MS_PER_TICK = 10;

interface Stat {
  readonly parent: number;
  readonly ownMs: number;
  /** CPU of children that have ended and were waited for. */
  readonly reapedMs: number;
}

async function readStat(pid: number): Promise<Stat | null> {
  const text = await readFile(`/proc/${pid}/stat`, 'utf8').catch(() => null);
  if (text === null) return null;
  // The name stands in parentheses and may hold anything; fields are counted after it. Source: proc(5).
  const fields = text
    .slice(text.lastIndexOf(')') + 2)
    .split(' ')
    .map(Number);
  const at = (index: number) => (fields[index - 3] ?? 0) * MS_PER_TICK;
  return { parent: fields[1] ?? 0, ownMs: at(14) + at(15), reapedMs: at(16) + at(17) };
}

interface Member extends Stat {
  readonly pid: number;
}

/** A process and its children. */
async function family(pid: number): Promise<Member[]> {
  const own = await readStat(pid);
  if (own === null) return [];
  const found: Member[] = [{ pid, ...own }];
  for (const name of await readdir('/proc')) {
    if (!/^\d+$/.test(name)) continue;
    const stat = await readStat(Number(name));
    if (stat?.parent === pid) found.push({ pid: Number(name), ...stat });
  }
  return found;
}

/** CPU milliseconds that a process and its children have used so far, those that ended included; in steps of 10. */
export async function cpuMs(pid: number): Promise<number> {
  const [own, ...children] = await family(pid);
  if (own === undefined) return 0;
  return own.ownMs + own.reapedMs + children.reduce((sum, child) => sum + child.ownMs + child.reapedMs, 0);
}

/** Resident memory of one process, in bytes; 0 when it is gone. */
export async function residentBytes(pid: number): Promise<number> {
  const text = await readFile(`/proc/${pid}/status`, 'utf8').catch(() => '');
  return Number(/VmRSS:\s+(\d+) kB/.exec(text)?.[1] ?? 0) * 1024;
}

/** Resident memory of a process and its children, in bytes; what they share counts for each of them. */
export async function familyResidentBytes(pid: number): Promise<number> {
  const each = await Promise.all((await family(pid)).map((member) => residentBytes(member.pid)));
  return each.reduce((sum, bytes) => sum + bytes, 0);
}

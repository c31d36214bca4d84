/**
 * `platform/host/` is what a process does with the machine that it runs on: child processes and free ports (this file), private
 * files, loopback addresses.
 */
import { spawn } from 'node:child_process';
import { createServer } from 'node:net';

/**
 * Ends the process `pid` when this process is gone, even if it was killed: a shell waits on a pipe that only this process holds
 * open, and sends `signal` when the pipe is closed. Returns a function that ends the guard. Throws when none can be made.
 */
export function guardChild(pid: number, signal: 'TERM' | 'INT' | 'KILL'): () => void {
  const guard = spawn('/bin/sh', ['-c', `read -r line; [ "$line" = off ] || kill -${signal} ${pid}`], {
    stdio: ['pipe', 'ignore', 'ignore'],
    detached: true,
  });
  // Without a file descriptor, or a process, to be had there is no guard, and no pipe to it: whoever is in need of it hears so.
  guard.on('error', () => {});
  if (guard.pid === undefined) throw new Error(`nothing can watch over process ${pid}: no process could be made`);
  guard.unref();
  guard.stdin.on('error', () => {});
  (guard.stdin as unknown as { unref?: () => void }).unref?.();
  return () => guard.stdin.end('off\n');
}

/** A port on `host` that was free a moment ago. Throws when `host` is no address of this machine. */
export async function freePort(host = '127.0.0.1'): Promise<number> {
  return new Promise((resolve, reject) => {
    const server = createServer();
    server.once('error', reject);
    server.listen(0, host, () => {
      const address = server.address();
      const port = typeof address === 'object' && address !== null ? address.port : 0;
      server.close(() => resolve(port));
    });
  });
}

/** Whether a process with this id exists. */
export function processExists(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'EPERM';
  }
}

/** Waits until `check` holds, checking every `everyMs`; throws `message` after `timeoutMs` (both in milliseconds). */
export async function waitUntil(
  check: () => Promise<boolean> | boolean,
  message: string,
  timeoutMs = 100_000,
  everyMs = 50,
): Promise<void> {
  const end = performance.now() + timeoutMs;
  while (!(await check())) {
    if (performance.now() > end) throw new Error(message);
    await new Promise((resolve) => setTimeout(resolve, everyMs));
  }
}

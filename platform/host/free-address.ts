/** Whether a process can listen where it is told to: asked before anything else is started, and said in words. */
import { readdir, readFile, readlink } from 'node:fs/promises';
import { createServer } from 'node:net';
import { join } from 'node:path';

/** Where to listen, and the option that names it. */
export interface ListenAddress {
  readonly host: string;
  /** 0 chooses a free one. */
  readonly port: number;
  readonly option: string;
}

/** The state of a listening socket in `/proc/net/tcp`. Source: https://man7.org/linux/man-pages/man5/proc_net_tcp.5.html */
const LISTENING = '0A';

/** Throws, with who has it where that can be seen and the option that names another, when nobody can listen at one of these. */
export async function requireFreeAddresses(addresses: readonly ListenAddress[]): Promise<void> {
  for (const { host, port, option } of addresses) {
    const code = port === 0 ? null : await tryToListen(host, port);
    if (code === null) continue;
    const at = `${host.includes(':') ? `[${host}]` : host}:${port}`;
    if (code === 'EADDRINUSE') {
      const owner = await findOwner(port);
      throw new Error(
        `${at} is taken${owner === null ? '' : ` by ${owner}`}: end that, or choose another with ${option}`,
      );
    }
    if (code === 'EADDRNOTAVAIL' || code === 'ENOTFOUND')
      throw new Error(`${host} is no address of this machine: choose one of its own with ${option}`);
    if (code === 'EACCES')
      throw new Error(`${at} is for privileged users alone: choose a port above 1023 with ${option}`);
    throw new Error(`nobody can listen at ${at} (${code}): choose another with ${option}`);
  }
}

/** Listens for a moment; the error's code where that fails. */
async function tryToListen(host: string, port: number): Promise<string | null> {
  const server = createServer();
  try {
    await new Promise<void>((resolve, reject) => server.once('error', reject).listen(port, host, resolve));
    await new Promise((resolve) => server.close(resolve));
    return null;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code ?? String(error);
  }
}

/** The process that listens on a port of this machine, in words; `null` where that can't be seen: on Linux, by its own user. */
async function findOwner(port: number): Promise<string | null> {
  try {
    const tables = await Promise.all(
      ['/proc/net/tcp', '/proc/net/tcp6'].map((file) => readFile(file, 'utf8').catch(() => '')),
    );
    const wanted = port.toString(16).toUpperCase().padStart(4, '0');
    const sockets = new Set(
      tables
        .flatMap((table) => table.split('\n'))
        .map((line) => line.trim().split(/\s+/))
        .filter(([, local, , state]) => local?.endsWith(`:${wanted}`) && state === LISTENING)
        .map((fields) => `socket:[${fields[9]}]`),
    );
    for (const pid of (await readdir('/proc')).filter((name) => /^\d+$/.test(name))) {
      const folder = join('/proc', pid, 'fd');
      for (const file of await readdir(folder).catch(() => [])) {
        if (!sockets.has(await readlink(join(folder, file)).catch(() => ''))) continue;
        return `${(await readFile(join('/proc', pid, 'comm'), 'utf8')).trim()} (process ${pid})`;
      }
    }
  } catch {
    // What has no /proc says less.
  }
  return null;
}

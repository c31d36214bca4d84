/**
 * Three Debian systems, each booted by its own systemd in namespaces of its own (systemd-nspawn), on one bridge, with a way to
 * Debian's archive. Needs root, systemd-container, mmdebstrap and nftables.
 */
import { type ChildProcess, execFile, spawn } from 'node:child_process';
import { closeSync, openSync } from 'node:fs';
import { access, cp, mkdir, readFile, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { guardChild, waitUntil } from '../../platform/host/child-process.ts';
import { cacheDirectory } from '../../stack/temporal-binary.ts';
import type { Copy } from './page.ts';

const run = promisify(execFile);
/** The network of the page. */
const NETWORK = '10.77.0';
const SUITE = 'bookworm';
/** What a server has on which Debian was just installed. */
const BARE = 'systemd,systemd-sysv,dbus,iproute2,procps';
const UP_MS = 60_000;

export interface ScriptRun {
  readonly code: number | null;
  readonly output: string;
}

interface Server {
  readonly root: string;
  nspawn: ChildProcess | null;
  callOffGuard: () => void;
}

export class ThreeServers {
  readonly #folder: string;
  readonly #bridge: string;
  readonly #servers = new Map<number, Server>();
  #forwarded = '';

  constructor(folder: string) {
    this.#folder = folder;
    this.#bridge = `moor${process.pid % 100_000}`;
  }

  /** Installs and boots them. `downloads`: what each finds in /opt/downloads. Throws what a tool says. */
  async start(downloads: string, print: (message: string) => void): Promise<void> {
    const base = await bareDebian(print);
    await this.#joinNetwork();
    for (const number of [1, 2, 3]) {
      const root = join(this.#folder, `server-${number}`);
      await run('cp', ['-a', base, root]);
      await mkdir(join(root, 'opt/downloads'), { recursive: true });
      await run('cp', ['-r', `${downloads}/.`, join(root, 'opt/downloads')]);
      await writeFile(join(root, 'etc/hostname'), `mooring-${number}\n`);
      await writeFile(join(root, 'etc/hosts'), '127.0.0.1 localhost\n');
      await cp('/etc/resolv.conf', join(root, 'etc/resolv.conf'), { dereference: true });
      await writeFile(
        join(root, 'etc/systemd/network/10-host0.network'),
        `[Match]\nName=host0\n[Network]\nAddress=${NETWORK}.1${number}/24\nGateway=${NETWORK}.1\n`,
      );
      // Where this machine reaches the registry by way of an authority of its own, so do they.
      const { NODE_EXTRA_CA_CERTS: trusted } = process.env;
      if (trusted) {
        await cp(trusted, join(root, 'opt/downloads/trusted.crt'));
        await writeFile(join(root, 'root/.npmrc'), 'cafile=/opt/downloads/trusted.crt\n');
      }
      this.#servers.set(number, { root, nspawn: null, callOffGuard: () => {} });
      await this.boot(number);
    }
    print('three servers with bare Debian');
  }

  async boot(number: number): Promise<void> {
    const server = this.#server(number);
    const log = openSync(join(this.#folder, `server-${number}.log`), 'a');
    server.nspawn = spawn(
      'systemd-nspawn',
      [
        ...['--quiet', '--register=no', '--keep-unit', '--boot', '--directory', server.root],
        ...['--machine', `${this.#bridge}-${number}`, '--hostname', `mooring-${number}`],
        ...['--network-bridge', this.#bridge, '--resolv-conf=off', '--console=pipe'],
      ],
      // Debian's systemd of today takes the host's control groups as they are.
      { stdio: ['ignore', log, log], env: { ...process.env, SYSTEMD_NSPAWN_UNIFIED_HIERARCHY: '0' } },
    );
    closeSync(log);
    const { pid } = server.nspawn;
    const guards = pid === undefined ? [] : [guardChild(pid, 'KILL')];
    server.callOffGuard = () => {
      for (const callOff of guards) callOff();
    };
    await waitUntil(
      async () =>
        (await this.run(number, 'systemctl is-system-running --wait; getent hosts deb.debian.org').catch(() => null))
          ?.code === 0,
      `mooring-${number} did not boot`,
      UP_MS,
      500,
    );
    // Its own first process outlives the one that made its namespaces.
    guards.push(guardChild(await this.#leader(number), 'KILL'));
  }

  /** Pulls the plug. */
  async off(number: number): Promise<void> {
    const server = this.#server(number);
    const { nspawn } = server;
    if (nspawn === null) return;
    const gone = new Promise((resolve) => nspawn.once('exit', resolve));
    process.kill(await this.#leader(number), 'SIGKILL');
    await gone;
    server.callOffGuard();
    server.nspawn = null;
  }

  /** Runs a script as root there. Resolves with how it ended, and what it printed. */
  async run(number: number, script: string, { timeoutMs = 600_000 } = {}): Promise<ScriptRun> {
    const leader = await this.#leader(number);
    return new Promise((resolve, reject) => {
      const child = spawn(
        'nsenter',
        [
          ...['--target', String(leader), '--mount', '--uts', '--ipc', '--net', '--pid', '--root', '--wd'],
          ...['env', '-i', '-C', '/root', 'HOME=/root', 'LANG=C.UTF-8', 'DEBIAN_FRONTEND=noninteractive'],
          ...['PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin'],
          ...['bash', '-euo', 'pipefail', '-c', script],
        ],
        { stdio: ['ignore', 'pipe', 'pipe'], timeout: timeoutMs },
      );
      let output = '';
      for (const stream of [child.stdout, child.stderr])
        stream.setEncoding('utf8').on('data', (text: string) => {
          output += text;
        });
      child.once('error', reject);
      child.once('close', (code) => resolve({ code, output }));
    });
  }

  /** As scp does it, with the users' names in place of their numbers. */
  async copy({ from, to }: Copy): Promise<void> {
    for (const path of from.paths) {
      const source = join(this.#server(from.server).root, path);
      await run('cp', ['-r', '--no-preserve=ownership', source, join(this.#server(to.server).root, to.path)]);
    }
  }

  async stop(): Promise<void> {
    for (const number of this.#servers.keys()) await this.off(number).catch(() => {});
    await run('ip', ['link', 'del', this.#bridge]).catch(() => {});
    await run('nft', ['delete', 'table', 'ip', this.#bridge]).catch(() => {});
    if (this.#forwarded !== '') await writeFile('/proc/sys/net/ipv4/ip_forward', this.#forwarded);
  }

  /** How one looks at a server by hand. */
  async howToEnter(number: number): Promise<string> {
    return `nsenter --target ${await this.#leader(number)} --mount --uts --ipc --net --pid --root --wd bash`;
  }

  #server(number: number): Server {
    const server = this.#servers.get(number);
    if (server === undefined) throw new Error(`there is no server ${number}`);
    return server;
  }

  /** The first process of a server, as this machine numbers it. */
  async #leader(number: number): Promise<number> {
    const pid = this.#server(number).nspawn?.pid;
    if (pid === undefined) throw new Error(`mooring-${number} is off`);
    const children = await readFile(`/proc/${pid}/task/${pid}/children`, 'utf8');
    const leader = Number(children.trim().split(' ')[0]);
    if (!Number.isInteger(leader) || leader <= 0) throw new Error(`mooring-${number} has not begun to boot`);
    return leader;
  }

  async #joinNetwork(): Promise<void> {
    const { stdout: taken } = await run('ip', ['-brief', 'address', 'show', 'to', `${NETWORK}.1/32`]);
    const [other] = taken.split(' ');
    if (other) throw new Error(`${NETWORK}.1 is this machine's already: end the other run, or "ip link del ${other}"`);
    await run('ip', ['link', 'add', this.#bridge, 'type', 'bridge']);
    await run('ip', ['addr', 'add', `${NETWORK}.1/24`, 'dev', this.#bridge]);
    await run('ip', ['link', 'set', this.#bridge, 'up']);
    this.#forwarded = await readFile('/proc/sys/net/ipv4/ip_forward', 'utf8');
    await writeFile('/proc/sys/net/ipv4/ip_forward', '1');
    await run('nft', ['add', 'table', 'ip', this.#bridge]);
    const chain = '{ type nat hook postrouting priority 100 ; }';
    await run('nft', [`add chain ip ${this.#bridge} out ${chain}`]);
    await run('nft', [
      `add rule ip ${this.#bridge} out ip saddr ${NETWORK}.0/24 ip daddr != ${NETWORK}.0/24 masquerade`,
    ]);
  }
}

/** A root of Debian as it is installed, made once. */
async function bareDebian(print: (message: string) => void): Promise<string> {
  const base = join(cacheDirectory(), `debian-${SUITE}`);
  const isThere = await access(base).then(
    () => true,
    () => false,
  );
  if (isThere) return base;
  print(`Debian ${SUITE}, from its archive`);
  const making = `${base}.${process.pid}`;
  await rm(making, { recursive: true, force: true });
  await run('mmdebstrap', ['--variant=minbase', `--include=${BARE}`, SUITE, making], { maxBuffer: 64 * 1024 * 1024 });
  await run('systemctl', ['--root', making, 'enable', 'systemd-networkd']);
  await run('mv', [making, base]);
  return base;
}

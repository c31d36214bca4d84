/** The QEMU of this machine: where it is, which machine type and accelerator it is run with, and how its processes are found. */
import { type ChildProcess, execFile, spawn } from 'node:child_process';
import { readdirSync, readlinkSync, realpathSync } from 'node:fs';
import { access, constants, readFile } from 'node:fs/promises';
import { platform, tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { processExists, waitUntil } from '../../platform/host/child-process.ts';
import { setting } from '../../platform/settings.ts';
import { Disk } from '../disk.ts';
import { COUNT_LINE, type GuestImage } from './guest-image.ts';

const run = promisify(execFile);

export const ACCELERATORS = ['kvm', 'tcg'] as const;
export type Accelerator = (typeof ACCELERATORS)[number];

/** How QEMU is run on this machine. */
export interface QemuProgram {
  readonly path: string;
  readonly version: string;
  /** For example `pc-q35-7.2`: with a version, so that two machines with different QEMUs can exchange guests. */
  readonly machine: string;
}

/** What makes a virtual machine; two between which a guest migrates must agree in all of it but the name. */
export interface MachineShape {
  readonly machine: string;
  readonly accelerator: Accelerator;
  readonly memoryMib: number;
  readonly ncpus: number;
  /** The CPU that the guest sees, by the name that sleds tell it by; `null`: what this accelerator gives without a word. */
  readonly cpuModel: string | null;
}

const PREFERRED_MACHINE = 'pc-q35-7.2';
const INSTALL_HINT = 'on Debian or Ubuntu: apt-get install --no-install-recommends qemu-system-x86';

/**
 * Finds QEMU on PATH, or as `MOORING_QEMU_BINARY` names it. Throws an error that says what to install when there is none,
 * or this is no Linux (processes are found in /proc).
 */
export async function findQemu(env: NodeJS.ProcessEnv = process.env): Promise<QemuProgram> {
  if (platform() !== 'linux') throw new Error('real VMs need Linux: use --hypervisor simulated here');
  const path = setting('MOORING_QEMU_BINARY', env) ?? 'qemu-system-x86_64';
  let version: string | undefined;
  let machines: string;
  try {
    version = /version (\d+\.\d+\.\d+)/.exec((await run(path, ['--version'])).stdout)?.[1];
    machines = (await run(path, ['-machine', 'help'])).stdout;
  } catch (error) {
    const reason = (error as NodeJS.ErrnoException).code === 'ENOENT' ? 'it is not installed' : String(error);
    throw new Error(`real VMs need QEMU (${path}): ${reason}; ${INSTALL_HINT}`);
  }
  const newest = /^q35 .*\(alias of (pc-q35-\S+)\)/m.exec(machines)?.[1];
  const machine = new RegExp(`^${PREFERRED_MACHINE.replace('.', '\\.')} `, 'm').test(machines)
    ? PREFERRED_MACHINE
    : newest;
  if (version === undefined || machine === undefined)
    throw new Error(`${path} is no QEMU with a q35 machine; ${INSTALL_HINT}`);
  return { path, version, machine };
}

/** How long a kernel may take until its guest counts, for KVM to count as usable, in milliseconds. With a real one it takes one second. */
const KVM_BOOT_MS = 10_000;

/**
 * Chooses KVM where a guest really boots with it, else QEMU's own translator, TCG. The device alone proves nothing: where
 * it is emulated itself, a kernel may never boot. Returns the choice and, in words, why.
 */
export async function chooseAccelerator(
  program: QemuProgram,
  image: GuestImage,
): Promise<{ accelerator: Accelerator; reason: string }> {
  const usable = await access('/dev/kvm', constants.R_OK | constants.W_OK).then(
    () => true,
    () => false,
  );
  if (!usable) return { accelerator: 'tcg', reason: 'there is no /dev/kvm that this user may open' };
  const disk = new Disk();
  const folder = disk.makeTemporaryFolder(join(tmpdir(), 'mooring-kvm-'));
  const shape: MachineShape = {
    machine: program.machine,
    accelerator: 'kvm',
    memoryMib: 128,
    ncpus: 1,
    cpuModel: null,
  };
  const child = spawnQemu(
    program,
    folder,
    qemuArguments('kvm-probe', shape, image, { paused: false, incoming: false }),
    disk,
  );
  let ended = false;
  child.once('exit', () => {
    ended = true;
  });
  child.once('error', () => {
    ended = true;
  });
  try {
    await waitUntil(
      async () => {
        if (ended) throw new Error('QEMU ended');
        return (await readFile(join(folder, FIRST_CONSOLE_FILE), 'utf8').catch(() => '')).search(COUNT_LINE) >= 0;
      },
      `a guest did not boot in ${KVM_BOOT_MS / 1000} s`,
      KVM_BOOT_MS,
    );
    return { accelerator: 'kvm', reason: 'a guest boots with it' };
  } catch (error) {
    return { accelerator: 'tcg', reason: `/dev/kvm is there, but not usable: ${(error as Error).message}` };
  } finally {
    child.kill('SIGKILL');
    if (!ended && child.pid !== undefined) await new Promise((resolve) => child.once('exit', resolve));
    await disk.removeTree(folder);
  }
}

/** QMP's socket and the console's first file, in the VM's folder: QEMU's working directory. */
export const QMP_SOCKET = 'qmp.sock';
const FIRST_CONSOLE_FILE = 'console-0.log';
export const QEMU_LOG = 'qemu.log';
/** The id of the serial console's back end. */
export const CONSOLE_CHARDEV = 'console';

/** What QEMU is told of a VM's CPU. A named model is enforced: QEMU starts only where the machine has all of it. */
export function cpuArguments({ accelerator, cpuModel }: Pick<MachineShape, 'accelerator' | 'cpuModel'>): string[] {
  if (cpuModel === null) return accelerator === 'kvm' ? ['-cpu', 'host'] : [];
  const [name = '', exactly] = cpuModel.split('/');
  return ['-cpu', exactly === undefined ? `${name},enforce` : name];
}

/** The arguments of a VM's process. Paths in them are relative to the VM's folder: a socket's may have 107 bytes only. */
export function qemuArguments(
  vmmId: string,
  shape: MachineShape,
  image: GuestImage,
  start: { readonly paused: boolean; readonly incoming: boolean },
): string[] {
  return [
    ...['-name', vmmId, '-nodefaults', '-no-user-config', '-display', 'none'],
    ...['-machine', shape.machine, '-accel', shape.accelerator],
    ...cpuArguments(shape),
    ...['-m', `${shape.memoryMib}M`, '-smp', String(shape.ncpus)],
    ...['-kernel', image.kernel, '-initrd', image.initramfs, '-append', image.commandLine],
    ...['-chardev', `file,id=${CONSOLE_CHARDEV},path=${FIRST_CONSOLE_FILE},append=on`],
    ...['-serial', `chardev:${CONSOLE_CHARDEV}`],
    ...['-qmp', `unix:${QMP_SOCKET},server=on,wait=off`],
    // The process stays when its guest ends, so that the reason can be read: all orderly ends have exit code 0.
    ...['-action', 'shutdown=pause,reboot=reset,panic=pause'],
    // Without it QEMU sends no event about a panic.
    ...['-device', 'pvpanic'],
    ...(start.paused ? ['-S'] : []),
    ...(start.incoming ? ['-incoming', 'defer'] : []),
  ];
}

/**
 * Starts a VM's process in its folder. It lives on when this process ends, and what it prints goes to a file. Throws a
 * `DiskError`.
 */
export function spawnQemu(program: QemuProgram, folder: string, args: readonly string[], disk: Disk): ChildProcess {
  disk.makeFolder(folder);
  const log = disk.openToAppend(join(folder, QEMU_LOG), false);
  try {
    const child = spawn(program.path, args, { cwd: folder, detached: true, stdio: ['ignore', log, log] });
    child.on('error', () => {});
    child.unref();
    return child;
  } finally {
    disk.close(log);
  }
}

/**
 * The processes that work below `folder`, each with its working directory: so a VM's process is found again whoever
 * started it, and never confused with another that has got its id. Throws when the folder is not there.
 */
export function findProcessesBelow(folder: string): Map<string, number> {
  const found = new Map<string, number>();
  const root = `${realpathSync(folder)}/`;
  for (const entry of readdirSync('/proc')) {
    if (!/^\d+$/.test(entry)) continue;
    const at = workingDirectory(Number(entry));
    if (at?.startsWith(root)) found.set(at.slice(root.length), Number(entry));
  }
  return found;
}

/** Whether the process `pid` lives and works in `folder` (a real path). A zombie doesn't live. */
export function worksIn(pid: number, folder: string): boolean {
  return workingDirectory(pid) === folder;
}

/** Ends a VM's process at once, and resolves when it is gone. Throws when it is still there after 30 seconds. */
export async function endProcess(pid: number, folder: string): Promise<void> {
  if (worksIn(pid, folder)) {
    try {
      process.kill(pid, 'SIGKILL');
    } catch {
      // It has just ended by itself.
    }
  }
  await waitUntil(() => !processExists(pid) || !worksIn(pid, folder), `process ${pid} does not end`, 30_000, 5);
}

function workingDirectory(pid: number): string | null {
  try {
    return readlinkSync(`/proc/${pid}/cwd`);
  } catch {
    return null;
  }
}

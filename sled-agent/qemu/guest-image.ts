/**
 * The guest for tests and the demo, made on the spot from what Debian ships: a kernel, and an initramfs with a static
 * busybox. It counts on its serial console, writes memory all the time and compares what it wrote, powers off when
 * its power button is pressed, and reports a panic to QEMU. For tests it panics or reboots after a few counts, where the
 * kernel's command line holds `mooring.panics` or `mooring.reboots`.
 */
import { execFile } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync } from 'node:fs';
import { mkdir, mkdtemp, readdir, readFile, rename, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { gzipSync } from 'node:zlib';
import { setting } from '../../platform/settings.ts';
import { directory, executable, packNewc } from './newc.ts';

const run = promisify(execFile);

/** What a VM boots. */
export interface GuestImage {
  readonly kernel: string;
  readonly initramfs: string;
  readonly commandLine: string;
}

/** The cloud kernel boots in half the time of the general one. The metapackage is empty: its dependency has the files. */
const KERNEL_PACKAGE = 'linux-image-cloud-amd64';
const BUSYBOX_PACKAGE = 'busybox-static';
/** What the kernel may leave out at boot, where there is no secret to keep: a sixth of its time under TCG. */
const QUICK_BOOT = 'mitigations=off cryptomgr.notests rcupdate.rcu_expedited=1 8250.nr_uarts=1';
/**
 * On a machine that is short of time the kernel takes the timer for broken, and panics before it can report that. A panic so
 * early is followed by a reboot, which QEMU reports.
 */
const STEADY_BOOT = 'no_timer_check panic=-1';
/** Loaded in this order: pvpanic-mmio needs pvpanic. */
const MODULES = ['pvpanic', 'pvpanic-mmio', 'evdev', 'button'];

/** How the guest's lines look: `count 12345`. */
export const COUNT_LINE = /^count (\d+)\r?$/gm;
/** What the guest prints when memory doesn't hold what it wrote. */
export const CORRUPT_LINE = 'memory is corrupt';

const INIT = `#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t devtmpfs none /dev
mount -t sysfs none /sys
mount -t proc none /proc
mount -t tmpfs none /tmp
for module in ${MODULES.join(' ')}; do insmod "/lib/$module.ko"; done
for input in /sys/class/input/event*; do
  if grep -q 'Power Button' "$input/device/name"; then
    (head -c 1 "/dev/input/\${input##*/}" >/dev/null; echo 'powering off'; poweroff -f) &
  fi
done
(while :; do
  head -c 262144 /dev/urandom >/tmp/written
  cp /tmp/written /tmp/copied
  cmp -s /tmp/written /tmp/copied || echo '${CORRUPT_LINE}'
  usleep 250000
done) &
count=0
while :; do
  count=$((count + 1))
  echo "count $count"
  if [ "$count" = 5 ]; then
    if grep -q mooring.panics /proc/cmdline; then echo c >/proc/sysrq-trigger; fi
    if grep -q mooring.reboots /proc/cmdline; then reboot -f; fi
  fi
  usleep 20000
done
`;

/**
 * Makes the guest in `cacheDir`, or finds the one made there before. Needs Debian's package tools the first time, which hold
 * what they fetch against its signed hash, and fetches nothing where `MOORING_OFFLINE` is set. Throws an error that says what is missing.
 */
export async function makeGuestImage(cacheDir: string, env: NodeJS.ProcessEnv = process.env): Promise<GuestImage> {
  // What the guest is made of is in its name, so that another version is another guest.
  const version = createHash('sha256').update(INIT).update(KERNEL_PACKAGE).digest('hex').slice(0, 12);
  const folder = join(cacheDir, `guest-${version}`);
  const image: GuestImage = {
    kernel: join(folder, 'vmlinuz'),
    initramfs: join(folder, 'initramfs.gz'),
    commandLine: `console=ttyS0 quiet nokaslr ${QUICK_BOOT} ${STEADY_BOOT}`,
  };
  if (existsSync(image.kernel) && existsSync(image.initramfs)) return image;
  if (setting('MOORING_OFFLINE', env))
    throw new Error(
      `there is no guest in ${cacheDir}, and nothing is fetched while MOORING_OFFLINE is set: copy ${folder} from a machine ` +
        'that has it, or name a kernel and an initramfs of your own with --kernel and --initramfs',
    );
  await mkdir(cacheDir, { recursive: true });
  const work = await mkdtemp(join(cacheDir, 'guest-making-'));
  try {
    await unpackPackages(work);
    const boot = join(work, 'root', 'boot');
    const kernel = (await readdir(boot)).find((file) => file.startsWith('vmlinuz-'));
    if (kernel === undefined) throw new Error(`the package ${KERNEL_PACKAGE} brought no kernel`);
    const files = await findModules(join(work, 'root', 'lib', 'modules'));
    const busybox = ['bin/busybox', 'usr/bin/busybox'].map((at) => join(work, 'root', at)).find(existsSync);
    if (busybox === undefined) throw new Error(`the package ${BUSYBOX_PACKAGE} brought no busybox`);
    const archive = packNewc([
      ...['bin', 'lib', 'dev', 'proc', 'sys', 'tmp'].map(directory),
      executable('init', Buffer.from(INIT)),
      executable('bin/busybox', await readFile(busybox)),
      ...(await Promise.all(
        [...files].map(async ([module, file]) => executable(`lib/${module}.ko`, await readFile(file))),
      )),
    ]);
    const ready = join(work, 'ready');
    await mkdir(ready);
    await writeFile(join(ready, 'initramfs.gz'), gzipSync(archive));
    await rename(join(boot, kernel), join(ready, 'vmlinuz'));
    // Another process may have been quicker: its guest is the same.
    await rename(ready, folder).catch((error) => {
      if (!existsSync(image.kernel)) throw error;
    });
    return image;
  } finally {
    await rm(work, { recursive: true, force: true });
  }
}

async function unpackPackages(work: string): Promise<void> {
  try {
    const { stdout } = await run('apt-cache', ['depends', KERNEL_PACKAGE]);
    const kernelPackage = /Depends: (linux-image-\S+)/.exec(stdout)?.[1];
    if (kernelPackage === undefined) throw new Error(`apt knows no package ${KERNEL_PACKAGE}`);
    await run('apt-get', ['download', kernelPackage, BUSYBOX_PACKAGE], { cwd: work });
  } catch (error) {
    throw new Error(
      `the guest's kernel and busybox can't be downloaded: ${reasonOf(error)}. They are made from Debian's packages ` +
        `${KERNEL_PACKAGE} and ${BUSYBOX_PACKAGE}: run "apt-get update" on Debian (amd64), or name a kernel and an ` +
        'initramfs of your own with --kernel and --initramfs',
    );
  }
  for (const file of await readdir(work))
    if (file.endsWith('.deb')) await run('dpkg', ['-x', join(work, file), join(work, 'root')]);
}

async function findModules(folder: string): Promise<Map<string, string>> {
  const found = new Map<string, string>();
  for (const file of await readdir(folder, { recursive: true })) {
    const name = file.slice(file.lastIndexOf('/') + 1).replace(/\.ko$/, '');
    if (file.endsWith('.ko') && MODULES.includes(name)) found.set(name, join(folder, file));
  }
  const missing = MODULES.filter((module) => !found.has(module));
  if (missing.length > 0) throw new Error(`the package ${KERNEL_PACKAGE} has no module ${missing.join(', ')}`);
  return found;
}

function reasonOf(error: unknown): string {
  const { code, stderr, message } = error as { code?: unknown; stderr?: string; message?: string };
  if (code === 'ENOENT') return 'apt is not here';
  return (stderr || message || String(error)).trim().split('\n').at(-1) ?? '';
}

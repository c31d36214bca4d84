/** Everything that real VMs need on this machine: QEMU, an accelerator, and a guest. */
import { createHash } from 'node:crypto';
import { mkdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { z } from 'zod';
import { findCpuModels } from './cpu-models.ts';
import { type GuestImage, makeGuestImage } from './guest-image.ts';
import { ACCELERATORS, type Accelerator, chooseAccelerator, findQemu, type QemuProgram } from './qemu-program.ts';

const ACCELERATOR_CHOICES = ['auto', ...ACCELERATORS] as const;

export interface QemuPreparation {
  readonly program: QemuProgram;
  readonly image: GuestImage;
  readonly accelerator: Accelerator;
  /** Why this accelerator, for people. */
  readonly reason: string;
  /** The CPU models that guests can be given here, the default first. */
  readonly cpuModels: readonly string[];
}

export interface QemuWishes {
  /** Where the guest is made and the probe's verdict is kept. */
  readonly cacheDir: string;
  readonly accelerator?: (typeof ACCELERATOR_CHOICES)[number];
  /** The CPU model that guests get by default: a name of QEMU's, `host`, or `baseline` (the default), which can migrate. */
  readonly cpuModel?: string | undefined;
  /** A kernel and an initramfs to boot, in place of the guest that is made from Debian's packages. */
  readonly kernel?: string | undefined;
  readonly initramfs?: string | undefined;
}

/** Finds or makes what is needed. Throws an error that says what is missing, and what to install. */
export async function prepareQemu(wishes: QemuWishes): Promise<QemuPreparation> {
  const { cacheDir, kernel, initramfs, accelerator = 'auto', cpuModel } = wishes;
  if ((kernel === undefined) !== (initramfs === undefined))
    throw new Error('--kernel and --initramfs belong together: give both, or neither');
  const program = await findQemu();
  const image: GuestImage =
    kernel !== undefined && initramfs !== undefined
      ? { kernel, initramfs, commandLine: 'console=ttyS0' }
      : await makeGuestImage(cacheDir);
  const chosen =
    accelerator === 'auto'
      ? await rememberedChoice(cacheDir, program, image)
      : { accelerator, reason: 'as it was asked for' };
  return { program, image, ...chosen, cpuModels: await findCpuModels(program, chosen.accelerator, cpuModel) };
}

const choice = z.object({ accelerator: z.enum(ACCELERATORS), reason: z.string() });

/** The probe boots a guest, which takes long where KVM is unusable: its verdict holds until the machine boots again. */
async function rememberedChoice(cacheDir: string, program: QemuProgram, image: GuestImage) {
  const bootId = await readFile('/proc/sys/kernel/random/boot_id', 'utf8').catch(() => '');
  const key = createHash('sha256')
    .update(JSON.stringify([bootId, program, image, process.getuid?.()]))
    .digest('hex');
  const file = join(cacheDir, `accelerator-${key.slice(0, 12)}.json`);
  try {
    return choice.parse(JSON.parse(await readFile(file, 'utf8')));
  } catch {
    const chosen = await chooseAccelerator(program, image);
    await mkdir(cacheDir, { recursive: true });
    await writeFile(file, JSON.stringify(chosen));
    return chosen;
  }
}

/**
 * Where an agent's data are: on which machine, and which folder it is there. A copy of them has the agent's id and its records,
 * but not its guests: started as that agent it would report them failed while they run. So the data say where they were made,
 * and no agent takes them up anywhere else, unless it is told that they were moved and the agent that had them is off.
 */
import { readdirSync, readFileSync, realpathSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { z } from 'zod';
import type { Disk } from './disk.ts';

/** The file of the place, in the agent's data. */
const DATA_PLACE = 'data-place.json';

const dataPlace = z.object({
  /** Of this installation of the system, and of the (virtual) hardware that it runs on; empty where it can't be known. */
  machine: z.string(),
  hardware: z.string(),
  /** The hardware addresses of its network interfaces, which anybody may read; the hardware's own id is the superuser's. */
  interfaces: z.array(z.string()).default([]),
  device: z.string(),
  inode: z.string(),
  folder: z.string(),
});
export type DataPlace = z.infer<typeof dataPlace>;

/**
 * Makes sure that an agent's data, whose folder is there, were made where they are, and has them say so where they don't yet.
 * `moved`: they were brought here on purpose, and are of this place from now on. Throws, with what to do, for data of another
 * place, or what the file system says.
 */
export function requireOwnPlace(dataDir: string, disk: Disk, moved = false): void {
  const path = join(dataDir, DATA_PLACE);
  const here = placeOf(dataDir);
  const known = readPlace(path);
  if (known !== undefined && !moved) {
    const why = known === null ? `${DATA_PLACE} there can't be read` : difference(known, here);
    if (why === null) return;
    throw new Error(
      `${dataDir} has the data of a sled agent that was at another place (${why}): two agents with the same data speak for one sled, and its guests are called lost while they run. If they were moved here, and the agent that had them is off for good, start this one once with --moved-data; for another sled, give it an empty folder`,
    );
  }
  // An agent whose disk is full must come up: its guests run.
  disk.eventually(`the place of ${dataDir}`, () => disk.replaceFile(path, JSON.stringify(here)));
}

/**
 * How two places differ, in words; `null`: they are one. The same folder of the same hardware is one place also where the
 * system's own id is another one: some have a new one after each boot.
 */
export function difference(known: DataPlace, here: DataPlace): string | null {
  const hardware = isSameHardware(known, here);
  const isOtherMachine = known.machine !== '' && here.machine !== '' && known.machine !== here.machine;
  if (isOtherMachine && !(hardware === true && known.folder === here.folder)) return 'on another machine';
  if (hardware === false) return 'on other hardware';
  // A folder that is moved within its file system stays what it is; a copy is another one.
  if (known.inode !== here.inode) return `in another folder, then at ${known.folder}`;
  // The number of a device may be another one after a boot; a file system that was copied is not where the first one is.
  if (known.device !== here.device && known.folder !== here.folder)
    return `on another file system, then at ${known.folder}`;
  return null;
}

/** Whether two places are on the same hardware; `null`: that can't be known. One interface of several may be exchanged. */
function isSameHardware(known: DataPlace, here: DataPlace): boolean | null {
  if (known.hardware !== '' && here.hardware !== '') return known.hardware === here.hardware;
  if (known.interfaces.length === 0 || here.interfaces.length === 0) return null;
  return known.interfaces.some((address) => here.interfaces.includes(address));
}

function placeOf(dataDir: string): DataPlace {
  const { dev, ino } = statSync(dataDir, { bigint: true });
  return {
    machine: readFirst('/etc/machine-id', '/var/lib/dbus/machine-id'),
    hardware: readFirst('/sys/class/dmi/id/product_uuid'),
    interfaces: readInterfaces(),
    device: String(dev),
    inode: String(ino),
    folder: realpathSync(dataDir),
  };
}

/**
 * The hardware addresses of this machine's network interfaces, without those that are made by software, which have no device:
 * bridges, tunnels, those of containers. Throws for want of a file descriptor.
 */
export function readInterfaces(folder = '/sys/class/net'): string[] {
  const addresses = listFolder(folder)
    .filter((name) => listFolder(join(folder, name, 'device')).length > 0)
    .map((name) => readFirst(join(folder, name, 'address')).toLowerCase())
    .filter((address) => /[1-9a-f]/.test(address));
  return [...new Set(addresses)].sort();
}

/** What is in a folder; nothing where it can't be read. Throws for want of a file descriptor. */
function listFolder(folder: string): string[] {
  try {
    return readdirSync(folder);
  } catch (error) {
    throwOfDescriptors(error);
    return [];
  }
}

/** What the first of these files says that can be read; empty where none can. Throws for want of a file descriptor. */
function readFirst(...paths: readonly string[]): string {
  for (const path of paths) {
    try {
      return readFileSync(path, 'utf8').trim();
    } catch (error) {
      throwOfDescriptors(error);
    }
  }
  return '';
}

function throwOfDescriptors(error: unknown): void {
  const { code = '' } = error as NodeJS.ErrnoException;
  if (code === 'EMFILE' || code === 'ENFILE') throw error;
}

/** The place that the data say; `undefined` where they say none, `null` where it can't be understood. */
function readPlace(path: string): DataPlace | null | undefined {
  let text: string;
  try {
    text = readFileSync(path, 'utf8');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined;
    throw error;
  }
  try {
    return dataPlace.parse(JSON.parse(text));
  } catch {
    return null;
  }
}

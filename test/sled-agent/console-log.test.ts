/** A guest's serial console in files: offsets go on counting, whatever file they are in. */
import { appendFileSync } from 'node:fs';
import { readdir } from 'node:fs/promises';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { Disk } from '../../sled-agent/disk.ts';
import { ConsoleLog } from '../../sled-agent/qemu/console-log.ts';
import { temporaryFolder } from '../support/qemu.ts';

let folder: Awaited<ReturnType<typeof temporaryFolder>>;
let writesTo: string;
/** QEMU, as far as it matters here: it writes to the file that it was last moved on to. */
const qemu = {
  async execute(_: string, args: Record<string, unknown> = {}) {
    writesTo = (args.backend as { data: { out: string } }).data.out;
    guestWrites('');
  },
};
const guestWrites = (text: string) => appendFileSync(join(folder.path, writesTo), text);
const read = async (log: ConsoleLog, from = 0, most = 1000) => {
  const { data, endOffset } = await log.read(from, most);
  return [data.toString(), endOffset];
};

beforeEach(async () => {
  folder = await temporaryFolder();
  writesTo = 'console-0.log';
});
afterEach(() => folder.close());

test('it is read from any offset, in pieces, and from its end', async () => {
  const log = new ConsoleLog(new Disk(), folder.path);
  expect(await read(log)).toEqual(['', 0]);
  guestWrites('0123456789');
  expect(await read(log)).toEqual(['0123456789', 10]);
  expect(await read(log, 4, 3)).toEqual(['456', 7]);
  expect(await read(log, -2)).toEqual(['89', 10]);
  expect(await read(log, -99)).toEqual(['0123456789', 10]);
  expect(await read(log, 99)).toEqual(['', 10]);
});

test('QEMU is moved on to a new file when one has grown: no byte is lost, two files are kept', async () => {
  const log = new ConsoleLog(new Disk(), folder.path, 10);
  guestWrites('short');
  await log.rotate(qemu);
  expect(writesTo).toBe('console-0.log');
  guestWrites(' and long');
  await log.rotate(qemu);
  // QEMU goes on writing to the file that it has open, under its new name.
  writesTo = 'console-14.log';
  guestWrites('second file');
  expect(await read(log)).toEqual(['short and longsecond file', 25]);
  expect(await read(log, 10, 8)).toEqual(['longseco', 18]);
  await log.rotate(qemu);
  writesTo = 'console-25.log';
  guestWrites('third');
  expect((await readdir(folder.path)).sort()).toEqual(['console-14.log', 'console-25.log']);
  expect(await read(log, 0)).toEqual(['second filethird', 30]);
});

test('an agent that ended between the two steps of it is mended by the next one', async () => {
  guestWrites('first');
  writesTo = 'console-next.log';
  guestWrites('second');
  const log = new ConsoleLog(new Disk(), folder.path);
  await log.mend();
  await log.mend();
  expect(await read(log)).toEqual(['firstsecond', 11]);
});

test('a guest’s console goes on where it arrives: its end comes along, offsets are the same', async () => {
  const source = new ConsoleLog(new Disk(), folder.path);
  guestWrites('x'.repeat(100_000));
  const tail = await source.tail();
  expect(tail.endOffset).toBe(100_000);

  const other = await temporaryFolder();
  const first = folder;
  try {
    folder = other;
    writesTo = 'console-0.log';
    guestWrites('');
    const destination = new ConsoleLog(new Disk(), other.path);
    await destination.continueFrom(tail, qemu);
    guestWrites('and on');
    expect(await read(destination, 99_998)).toEqual(['xxand on', 100_006]);
    const oldest = await destination.read(0, 1_000_000);
    expect(oldest.endOffset - oldest.data.length).toBeGreaterThan(50_000);
    expect(destination.readEndSync(6).toString()).toBe('and on');
  } finally {
    folder = first;
    await other.close();
  }
});

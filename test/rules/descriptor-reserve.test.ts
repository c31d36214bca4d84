/** The reserve of file descriptors: whatever takes the others, what must go on finds one, and nothing is kept that was not given back. */
import fc from 'fast-check';
import { afterEach, describe, expect, test } from 'vitest';
import {
  DescriptorReserve,
  type DescriptorSource,
  readDescriptorLimit,
} from '../../platform/host/descriptor-reserve.ts';

const lack = (code: string) => Object.assign(new Error(`${code}: none left`), { code });

/** A process's table of descriptors: some are taken by others, and it may have `size`. */
class Table implements DescriptorSource {
  size: number;
  readonly #code: string;
  others = 0;
  own = 0;

  constructor(size: number, code = 'EMFILE') {
    this.size = size;
    this.#code = code;
  }

  get free(): number {
    return Math.max(0, this.size - this.others - this.own);
  }

  limit(): number {
    return this.size;
  }

  take(): number {
    if (this.free === 0) throw lack(this.#code);
    this.own += 1;
    return this.own;
  }

  give(): void {
    this.own -= 1;
  }

  /** As something else of the process does; fails where there is none. */
  async open(): Promise<void> {
    if (this.free === 0) throw lack(this.#code);
  }
}

const ends: (() => void)[] = [];
afterEach(() => {
  for (const end of ends.splice(0)) end();
});

type Step =
  | { readonly kind: 'others'; readonly take: number }
  | { readonly kind: 'limit'; readonly size: number }
  | { readonly kind: 'look' | 'use' };
const steps: fc.Arbitrary<Step[]> = fc.array(
  fc.oneof(
    fc.record({ kind: fc.constant('others' as const), take: fc.integer({ min: 0, max: 400 }) }),
    fc.record({ kind: fc.constant('limit' as const), size: fc.integer({ min: 40, max: 300 }) }),
    fc.record({ kind: fc.constantFrom('look' as const, 'use' as const) }),
  ),
  { maxLength: 30 },
);

test('whatever others take, what must be done finds a descriptor, and the trouble is told once for as long as it lasts', () =>
  fc.assert(
    fc.asyncProperty(fc.constantFrom('EMFILE', 'ENFILE'), steps, async (code, all) => {
      const table = new Table(100, code);
      const reserve = new DescriptorReserve(table);
      const told: string[] = [];
      const giveUp = reserve.hold((message) => told.push(message));
      expect(reserve.isScarce).toBe(false);
      try {
        for (const step of all) {
          // Others take all that is free; of a reserve that was given up something is left to who must go on.
          const left = reserve.isScarce ? 8 : 0;
          if (step.kind === 'others') table.others = Math.min(step.take, table.size - table.own - left);
          else if (step.kind === 'limit') table.size = Math.max(step.size, table.own + table.others + left);
          else if (step.kind === 'look') reserve.look();
          else await reserve.use(() => table.open());
          table.others = Math.max(0, table.others);
          if (step.kind === 'look' && table.free > 40) expect(reserve.trouble).toBeNull();
          if (!reserve.isScarce) expect(table.own).toBeGreaterThanOrEqual(4);
          if (reserve.isScarce) expect(reserve.trouble).toContain(`no file descriptors left (${code})`);
          expect(told.length % 2 === 1).toBe(reserve.isScarce);
        }
      } finally {
        giveUp();
      }
      expect(table.own).toBe(0);
    }),
  ));

describe('where there are none left', () => {
  test.each(['EMFILE', 'ENFILE', 'ENOTFOUND', 'EAI_AGAIN'])(
    'what fails with %s is done once more, with the reserve; where there are some it is not',
    async (code) => {
      const table = new Table(100);
      const reserve = new DescriptorReserve(table);
      ends.push(reserve.hold(() => {}));
      let tries = 0;
      const work = async () => {
        tries += 1;
        if (table.free === 0) throw lack(code);
        return 'done';
      };
      table.others = table.size - table.own;
      expect(await reserve.use(work)).toBe('done');
      expect([tries, reserve.isScarce, table.own]).toEqual([2, true, 0]);
      table.others = 0;
      reserve.look();
      expect([reserve.isScarce, table.own]).toEqual([false, 25]);
      tries = 0;
      const fails = async () => {
        tries += 1;
        throw lack(code);
      };
      await expect(reserve.use(fails)).rejects.toThrow(code);
      expect(tries).toBe(1);
    },
  );

  test('what may be closed is closed first: where that is enough the reserve stays', () => {
    const table = new Table(100);
    const reserve = new DescriptorReserve(table);
    ends.push(reserve.hold(() => {}));
    const held = table.own;
    const stop = reserve.onShortage(() => {
      table.others = 10;
    });
    table.others = table.size - held;
    expect([reserve.look(), reserve.isScarce, table.own]).toEqual([true, false, held]);
    stop();
    table.others = table.size - held;
    expect([reserve.look(), reserve.isScarce, table.own]).toEqual([true, true, 0]);
  });

  test('nothing is begun that would need the reserve', () => {
    for (let others = 0; others <= 75; others++) {
      const table = new Table(100);
      const reserve = new DescriptorReserve(table);
      ends.push(reserve.hold(() => {}));
      table.others = others;
      const free = table.free;
      const why = reserve.whyNotFor(8);
      if (free >= 8) expect([free, why]).toEqual([free, null]);
      else expect([free, why]).toEqual([free, expect.stringContaining('no file descriptors left')]);
      if (free > 0) expect(reserve.isScarce).toBe(false);
    }
  });

  test('it is held as long as one of those lives who asked for it', () => {
    const table = new Table(100);
    const reserve = new DescriptorReserve(table);
    const tell = () => {};
    const [first, second] = [reserve.hold(tell), reserve.hold(tell)];
    first();
    first();
    expect(table.own).toBe(25);
    second();
    expect([table.own, reserve.look()]).toEqual([0, false]);
  });
});

test('the limit of a process is read as the kernel writes it', () => {
  const line = (soft: string) =>
    `Limit   Soft Limit   Hard Limit   Units\nMax open files            ${soft}    524288    files \n`;
  expect(readDescriptorLimit(line('1024'))).toBe(1024);
  expect(readDescriptorLimit(line('unlimited'))).toBe(Number.POSITIVE_INFINITY);
  for (const other of ['', 'Max processes 100 200 processes']) expect(readDescriptorLimit(other)).toBeNull();
});

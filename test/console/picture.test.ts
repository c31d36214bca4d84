/** What the console makes of what it hears, without a browser: events, the picture of the fleet, what is in sight, who may what. */
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { mayAs, type OperationName } from '../../console/api/permitted.ts';
import type { Instance, Sled } from '../../console/api/types.ts';
import { hrefOf, routeOf } from '../../console/routes.ts';
import { drawPicture, NO_FILTER, tilesPerColumn } from '../../console/store/picture.ts';
import { rowsInSight } from '../../console/store/window.ts';
import { safeLink } from '../../console/words.ts';
import { ACCESS_ROLES, judgeAccess } from '../../model/access.ts';
import { EventParser, type RawEvent } from '../../model/event-parser.ts';
import { PERMISSIONS } from '../../model/permissions.ts';
import { EXTERNAL_STATES } from '../../model/states.ts';

describe('a stream of events', () => {
  const event = fc.record({
    event: fc.constantFrom('instance', 'operation', 'sled'),
    data: fc.string({ unit: 'grapheme' }).filter((text) => text !== '' && !/[\r\n]/.test(text)),
    id: fc.option(fc.integer({ min: 1 }).map(String), { nil: null }),
    comment: fc.boolean(),
  });
  test('is read the same wherever it is cut', () => {
    fc.assert(
      fc.property(
        fc.array(event, { minLength: 1 }),
        fc.array(fc.nat()),
        fc.constantFrom('\n', '\r\n'),
        (events, cuts, end) => {
          const text = events
            .map(({ event, data, id, comment }) =>
              [
                ...(comment ? [': hello'] : []),
                `event: ${event}`,
                `data: ${data}`,
                ...(id === null ? [] : [`id: ${id}`]),
                '',
                '',
              ].join(end),
            )
            .join('');
          const parser = new EventParser();
          const places = [...new Set(cuts.map((cut) => cut % (text.length + 1)))].sort((a, b) => a - b);
          const read: RawEvent[] = [];
          for (const [index, place] of [...places, text.length].entries())
            read.push(...parser.take(text.slice(index === 0 ? 0 : places[index - 1], place)));
          expect(read).toEqual(events.map(({ event, data, id }) => ({ event, data, id })));
          expect(parser.lastId).toBe(events.findLast(({ id }) => id !== null)?.id ?? null);
        },
      ),
    );
  });
  test('moves its cursor by an id alone, and not by one that is not complete', () => {
    const parser = new EventParser();
    expect(parser.take('id: 7\n')).toEqual([]);
    expect(parser.lastId).toBeNull();
    expect(parser.take('\nid: 8')).toEqual([]);
    expect(parser.lastId).toBe('7');
  });
});

const instance = (id: string, place: string | null, values: Partial<Instance> = {}) =>
  ({
    id,
    name: id,
    project_id: 'p',
    run_state: 'running',
    sled_id: place,
    migration_target_sled_id: null,
    ...values,
  }) as Instance;
const sled = (id: string) => ({ id, name: id, state: 'active' }) as Sled;

describe('the picture of the fleet', () => {
  test('has each instance once where it is, and once more where it goes', () => {
    fc.assert(
      fc.property(
        fc.array(
          fc.record({
            place: fc.option(fc.nat(5)),
            target: fc.option(fc.nat(5)),
            state: fc.constantFrom(...EXTERNAL_STATES),
          }),
        ),
        fc.constantFrom(null, ...EXTERNAL_STATES),
        (made, state) => {
          const sleds = [0, 1, 2, 3].map((number) => sled(`sled-${number}`));
          const name = (number: number | null) => (number === null ? null : `sled-${number}`);
          const all = made.map(({ place, target, state }, index) =>
            instance(`vm-${index}`, name(place), { migration_target_sled_id: name(target), run_state: state }),
          );
          const picture = drawPicture(sleds, new Map(all.map((one) => [one.id, one])), { ...NO_FILTER, state });
          const wanted = all.filter(({ run_state }) => state === null || run_state === state);
          const drawn = picture.columns.flatMap(({ id, instances }) => instances.map((one) => [one.id, id]));
          expect(drawn.sort()).toEqual(wanted.map((one) => [one.id, one.sled_id]).sort());
          expect(picture.columns.flatMap(({ arriving }) => arriving)).toHaveLength(
            wanted.filter(({ migration_target_sled_id }) => migration_target_sled_id !== null).length,
          );
          expect(picture.shown).toBe(Object.values(picture.counts).reduce((sum, count) => sum + count, 0));
          expect(picture.total).toBe(all.length);
        },
      ),
    );
  });
  test('has what moves and what failed first, then by name, numbers as numbers', () => {
    const all = [
      instance('vm-10', 's'),
      instance('vm-9', 's'),
      instance('off', 's', { run_state: 'stopped' }),
      instance('broken', 's', { run_state: 'failed' }),
      instance('mover', 's', { run_state: 'migrating' }),
    ];
    const [column] = drawPicture([sled('s')], new Map(all.map((one) => [one.id, one])), NO_FILTER).columns;
    expect(column?.instances.map(({ id }) => id)).toEqual(['mover', 'broken', 'vm-9', 'vm-10', 'off']);
  });
  test('of 200 sleds and 10,000 instances is drawn by few tiles', () => {
    const sleds = Array.from({ length: 200 }, (_, number) => sled(`sled-${number}`));
    const all = Array.from({ length: 10_000 }, (_, number) => instance(`vm-${number}`, `sled-${number % 200}`));
    const { columns } = drawPicture(sleds, new Map(all.map((one) => [one.id, one])), NO_FILTER);
    const tiles = tilesPerColumn(columns);
    // A window of 1080 pixels, six columns wide: what is drawn is what is in sight, and a row around it.
    const { first, end } = rowsInSight(0, 1080, 206 + tiles * 70, Math.ceil(columns.length / 6));
    expect((end - first) * 6 * tiles).toBeLessThanOrEqual(100);
  });
});

test('what is in sight, and a row around it, is drawn: never more, never nothing', () => {
  fc.assert(
    fc.property(
      fc.integer({ min: -5_000, max: 500_000 }),
      fc.integer({ min: 1, max: 3_000 }),
      fc.integer({ min: 20, max: 500 }),
      fc.nat(10_000),
      (offset, sight, height, count) => {
        const { first, end } = rowsInSight(offset, sight, height, count);
        expect(end - first).toBeLessThanOrEqual(sight / height + 4);
        if (count > 0) expect(end).toBeGreaterThan(first);
        for (let row = first; row < end; row += 1) expect(row).toBeLessThan(count);
        const seen = Math.max(0, Math.floor(offset / height));
        if (seen < count && offset + sight > 0) expect(first <= seen && seen < end).toBe(true);
      },
    ),
  );
});

test('each view has an address, and nonsense is the fleet', () => {
  const id = '0e5f1a3c-0000-4000-8000-000000000001';
  for (const route of [
    { view: 'fleet' },
    { view: 'instances' },
    { view: 'activity' },
    { view: 'audit' },
    { view: 'instance', id },
    { view: 'sled', id },
  ] as const)
    expect(routeOf(hrefOf(route))).toEqual(route);
  for (const nonsense of ['', '#', '#/nowhere', '#/sleds/../../x', '#/instances/<img>'])
    expect(routeOf(nonsense).view).toMatch(/^(fleet|instances)$/);
});

test.each(['javascript:alert(1)', 'data:text/html,x', ' https://a', 'file:///etc/passwd', '//evil', null, undefined])(
  '%s is no link',
  (address) => expect(safeLink(address)).toBeNull(),
);

describe('what somebody may do', () => {
  const cases = ACCESS_ROLES.flatMap((role) => [null, 'mine'].map((projectId) => [role, projectId] as const));
  test.each(cases)('%s on %s: as the API decides, for each of its endpoints', (role, projectId) => {
    for (const { operation, needs } of Object.values(PERMISSIONS)) {
      if (typeof needs === 'string') continue;
      for (const project of ['mine', 'other'])
        expect(
          mayAs({ kind: 'operator', role, project_id: projectId }, operation as OperationName, project),
          `${operation} of ${project}`,
        ).toBe(judgeAccess({ role, projectId }, needs, [project]) === 'allowed');
    }
  });
  test('nobody may anything; the local operator all that is for operators', () => {
    expect(mayAs(null, 'instance_list')).toBe(false);
    expect(mayAs({ kind: 'local', role: 'admin', project_id: null }, 'sled_expunge')).toBe(true);
    expect(mayAs({ kind: 'local', role: 'admin', project_id: null }, 'vmm_report' as OperationName)).toBe(false);
  });
});

import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { DrainLedger, type DrainProgress, describeDrain, drainDetails, drainStep } from '../../model/drain.ts';
import { EXTERNAL_STATES } from '../../model/states.ts';

describe('what a drain does about an instance', () => {
  test.each(EXTERNAL_STATES)('%s', (externalState) => {
    expect(drainStep(externalState, 'elsewhere')).toBe('left');
    expect(drainStep(externalState, 'target')).toBe('wait');
    const here = drainStep(externalState, 'active');
    if (externalState === 'running') expect(here).toBe('move');
    else expect(here).toBe(['stopped', 'failed'].includes(externalState) ? 'left' : 'wait');
  });
});

test('its progress fits one line', () => {
  const entry = { instanceId: 'i', name: 'web', detail: 'why' };
  const progress: DrainProgress = {
    sledId: 's',
    sledName: 'sled-1',
    state: 'running',
    total: 5,
    moved: 2,
    ended: 1,
    moving: [entry],
    waiting: [],
    couldNotMove: [entry],
    parallel: 4,
    stopReason: null,
  };
  expect(describeDrain(progress)).toBe(
    'draining sled-1: 2 of 5 moved, 1 ended by themselves, 1 moving, 1 could not move',
  );
  expect(describeDrain({ ...progress, state: 'drained', ended: 0, moving: [], couldNotMove: [] })).toBe(
    'sled-1 is drained: 2 of 5 moved',
  );
  expect(describeDrain({ ...progress, state: 'stopped', stopReason: 'by an operator' })).toMatch(
    /stopped \(by an operator\)/,
  );
  expect(describeDrain({ ...progress, state: 'incomplete' })).toMatch(/not drained.*1 could not move/);
  const details = drainDetails({
    ...progress,
    moving: [{ ...entry, detail: 'sled-2' }],
    couldNotMove: [{ ...entry, name: 'shop', detail: 'refused *twice*' }],
  });
  expect(details.split('\n')).toEqual([
    `**${describeDrain(progress)}**`,
    '',
    'Moving, at most 4 at a time:',
    '',
    '- **web** → sled-2',
    '',
    'Could not move:',
    '',
    '- **shop**: refused \\*twice\\*',
  ]);
});

describe('the ledger of a drain', () => {
  const web = { instanceId: 'web', name: 'web' };
  const db = { instanceId: 'db', name: 'db' };
  const drain = { sledId: 's', sledName: 'sled-1', state: 'running', parallel: 2, stopReason: null } as const;

  test('an instance that failed is tried again until its rounds are over, and where it failed is avoided', () => {
    const ledger = new DrainLedger(2);
    expect(ledger.observe([web, db])).toEqual([]);
    ledger.movesTo(web, 'sled-2');
    ledger.failed(web, 'refused', 'sled-2-id');
    expect(ledger.open([web, db])).toEqual([web, db]);
    expect(ledger.leastRounds([web])).toBe(1);
    expect(ledger.sledIdsToAvoid('web')).toEqual(['sled-2-id']);
    ledger.failed(web, 'no room');
    expect(ledger.open([web, db])).toEqual([db]);
    expect(ledger.progress(drain).couldNotMove).toEqual([{ ...web, detail: 'no room' }]);
  });

  test('one that was given up is not tried again; one that has come back is', () => {
    const ledger = new DrainLedger(3);
    ledger.observe([web]);
    ledger.givenUp(web, 'waited in vain');
    expect(ledger.open([web])).toEqual([]);
    expect(ledger.observe([])).toEqual([web]);
    ledger.returned(web);
    expect(ledger.open([web])).toEqual([web]);
  });

  test('who is waited for and then moves is listed once', () => {
    const ledger = new DrainLedger(3);
    ledger.observe([web]);
    ledger.waitsFor(web, 'it is starting');
    expect(ledger.progress(drain).waiting).toEqual([{ ...web, detail: 'it is starting' }]);
    ledger.movesTo(web, 'sled-2');
    expect(ledger.progress(drain)).toMatchObject({ waiting: [], moving: [{ ...web, detail: 'sled-2' }] });
    ledger.left('web', 'moved');
    expect(ledger.progress(drain)).toMatchObject({ moving: [], moved: 1, total: 1 });
    expect(ledger.empty).toBe(true);
  });

  test('nothing is counted twice or lost, whatever happens, and the next run goes on where this one was', () => {
    const ids = ['a', 'b', 'c', 'd'];
    const event = fc.record({
      id: fc.constantFrom(...ids),
      what: fc.constantFrom('moves', 'waits', 'failed', 'givenUp', 'moved', 'ended', 'continued'),
    });
    fc.assert(
      fc.property(fc.array(event, { maxLength: 40 }), (events) => {
        let ledger = new DrainLedger(3);
        let here = new Set(ids);
        const observe = () => ledger.observe([...here].map((id) => ({ instanceId: id, name: id })));
        observe();
        for (const { id, what } of events) {
          const instance = { instanceId: id, name: id };
          if (!here.has(id)) continue;
          if (what === 'moves') ledger.movesTo(instance, 'elsewhere');
          if (what === 'waits') ledger.waitsFor(instance, 'something');
          if (what === 'failed') ledger.failed(instance, 'why', 'there');
          if (what === 'givenUp') ledger.givenUp(instance, 'why');
          if (what === 'moved' || what === 'ended') {
            ledger.left(id, what);
            here = new Set([...here].filter((other) => other !== id));
          }
          if (what === 'continued') {
            ledger = new DrainLedger(3, JSON.parse(JSON.stringify(ledger.carried())));
            observe();
          }
          const progress = ledger.progress(drain);
          expect(progress.total).toBe(ids.length);
          expect(progress.moved + progress.ended).toBe(ids.length - here.size);
          const listed = [...progress.moving, ...progress.waiting, ...progress.couldNotMove];
          for (const { instanceId } of listed) expect(here.has(instanceId)).toBe(true);
          expect(ledger.empty).toBe(here.size === 0);
        }
      }),
    );
  });
});

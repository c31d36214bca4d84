/** One reader of the stream: what it is shown, and what becomes of what it does not take. */
import { Writable } from 'node:stream';
import { describe, expect, test } from 'vitest';
import { type EventFilter, EventStream, shows, type WrittenEvent } from '../../api/events/event-stream.ts';
import { writeObject } from '../../api/events/event-text.ts';
import { EventParser } from '../../model/event-parser.ts';
import { EVENT_KINDS, FLEET_EVENT_KINDS } from '../../wire/operator-api/events.ts';

const ALL: EventFilter = { kinds: new Set(EVENT_KINDS), projectId: null, instanceId: null };
const MINE = { kind: 'instance', id: 'a', projectId: 'mine', instanceId: 'a' } as const;

function event(id: string, version = 1): WrittenEvent {
  const changed = { ...MINE, id, instanceId: id };
  return { changed, text: writeObject({ ...changed, object: { version } }) };
}

/** A connection that takes what it is given only when it is let. */
class Connection extends Writable {
  taken = '';
  #isHeld = false;
  #go: (() => void) | null = null;

  constructor() {
    super({ highWaterMark: 1, decodeStrings: false });
  }
  hold(): void {
    this.#isHeld = true;
  }
  async letGo(): Promise<void> {
    this.#isHeld = false;
    this.#go?.();
    this.#go = null;
    for (let turn = 0; turn < 50; turn++) await new Promise((resolve) => setImmediate(resolve));
  }
  override _write(chunk: string, _: string, done: () => void): void {
    this.taken += chunk;
    if (this.#isHeld) this.#go = done;
    else setImmediate(done);
  }
  get events() {
    return new EventParser().take(this.taken).map(({ event: name, data, id }) => ({ name, id, ...JSON.parse(data) }));
  }
  get lastId(): string | null {
    const parser = new EventParser();
    parser.take(this.taken);
    return parser.lastId;
  }
}

describe('who is shown what', () => {
  const onProject: EventFilter = { ...ALL, projectId: 'mine' };
  test.each([
    ['all of the fleet to who is on it', ALL, MINE, true],
    ['its own project', onProject, MINE, true],
    ['no other project', onProject, { ...MINE, projectId: 'theirs' }, false],
    ['nothing of which nobody knows whose it is', onProject, { ...MINE, projectId: null }, false],
    ['no kind that was not asked for', { ...ALL, kinds: new Set(['sled'] as const) }, MINE, false],
    ['one instance', { ...ALL, instanceId: 'a' }, MINE, true],
    ['no other instance', { ...ALL, instanceId: 'b' }, MINE, false],
    ['nothing that is about none', { ...ALL, instanceId: 'a' }, { ...MINE, kind: 'sled', instanceId: null }, false],
  ] as const)('%s', (_, filter, changed, expected) => {
    expect(shows(filter, changed)).toBe(expected);
  });

  test('sleds and the audit log are the fleet’s, and no project has them', () => {
    expect([...FLEET_EVENT_KINDS].sort()).toEqual(['audit', 'sled']);
  });
});

test('the cursor comes with the last event of a batch, and with the next beat where there was none for it', async () => {
  const connection = new Connection();
  const stream = new EventStream(connection, ALL, null);
  stream.send([event('a'), event('b')], 'one');
  await connection.letGo();
  expect(connection.events.map(({ id, name }) => [name, id])).toEqual([
    ['instance', 'a'],
    ['instance', 'b'],
  ]);
  expect(connection.lastId).toBe('one');
  stream.send([], 'two');
  await connection.letGo();
  expect(connection.lastId).toBe('one');
  stream.beat();
  await connection.letGo();
  expect(connection.lastId).toBe('two');
  expect(connection.events).toHaveLength(2);
});

test('who does not read gets the newest of each object when it goes on, and the cursor after all of them', async () => {
  const connection = new Connection();
  const stream = new EventStream(connection, ALL, null);
  await connection.letGo();
  connection.hold();
  for (let version = 1; version <= 100; version++)
    stream.send([event('a', version), event(`b${version % 3}`, version)], `at ${version}`);
  await connection.letGo();
  // The first had been given to the connection before it took no more.
  const [first, ...rest] = connection.events.map(({ object }) => object.version);
  expect(first).toBe(1);
  expect(rest.slice(-4).sort((a, b) => a - b)).toEqual([98, 99, 100, 100]);
  expect(rest.length).toBeLessThan(8);
  expect(connection.lastId).toBe('at 100');
});

test('who has missed too much is told to begin anew, once, and goes on from there', async () => {
  const connection = new Connection();
  const stream = new EventStream(connection, ALL, null, 10);
  await connection.letGo();
  connection.hold();
  for (let made = 0; made < 50; made++) stream.send([event(`vm-${made}`)], `at ${made}`);
  await connection.letGo();
  stream.send([event('after')], 'later');
  await connection.letGo();
  const told = connection.events.map(({ name, reason, object }) => reason ?? (object && name));
  expect(told.slice(-2)).toEqual(['slow', 'instance']);
  expect(told.filter((what) => what === 'slow')).toHaveLength(1);
  expect(connection.lastId).toBe('later');
});

test('a stream that ends says why, and nothing after it', async () => {
  const connection = new Connection();
  const stream = new EventStream(connection, ALL, 'token');
  stream.end('token_revoked');
  stream.send([event('a')], 'one');
  stream.beat();
  stream.end('closing');
  await connection.letGo();
  expect(connection.events).toEqual([{ name: 'end', id: null, reason: 'token_revoked' }]);
});

test('what is written is read, however it is cut, whatever stands in it', async () => {
  const planted = 'a\nb\r\n\ndata: c\u2028 event: end <script>alert(1)</script>';
  const { text } = { text: `${writeObject({ ...MINE, object: { name: planted } })}id: 7\n\n` };
  for (let cut = 0; cut <= text.length; cut++) {
    const parser = new EventParser();
    const events = [...parser.take(text.slice(0, cut)), ...parser.take(text.slice(cut))];
    expect(events.map(({ data }) => JSON.parse(data).object.name)).toEqual([planted]);
    expect(parser.lastId).toBe('7');
  }
});

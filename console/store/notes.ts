/** What is said to the person who looks, where they look: refusals, and how a migration went. Kept for a while, or until dismissed. */
import { signal } from '@preact/signals';
import { api, done } from '../api/client.ts';

export interface Note {
  readonly tone: 'bad' | 'good';
  readonly text: string;
  /** What an operation's own end says is more than this. */
  readonly isMinor?: boolean;
}

/** How long good news stays, in milliseconds. What went wrong stays until it is dismissed. */
const GOOD_NEWS_MS = 30_000;

/** By what they are about: the id of an instance or a sled. */
export const notes = signal<ReadonlyMap<string, Note>>(new Map());
/** What was asked of an instance and is not answered yet, in words, by its id. */
export const asked = signal<ReadonlyMap<string, string>>(new Map());

/** Shows that something is asked of an instance, for as long as the call lasts. Throws what the call throws. */
export async function whileAsked<Value>(instanceId: string, words: string, call: () => Promise<Value>): Promise<Value> {
  asked.value = new Map(asked.peek()).set(instanceId, words);
  try {
    return await call();
  } finally {
    const left = new Map(asked.peek());
    left.delete(instanceId);
    asked.value = left;
  }
}

/** What a screen reader reads aloud. */
export const announcement = signal('');

/** Says something at what it is about (ids of instances and sleds), and aloud. */
export function say(subjects: readonly string[], note: Note): void {
  const next = new Map(notes.peek());
  for (const subject of subjects) next.set(subject, note);
  notes.value = next;
  announcement.value = note.text;
  if (note.tone === 'good')
    setTimeout(() => {
      for (const subject of subjects) if (notes.peek().get(subject) === note) dismiss(subject);
    }, GOOD_NEWS_MS);
}

/** Takes back what is said at a subject, and the same words elsewhere. */
export function dismiss(subject: string): void {
  const note = notes.peek().get(subject);
  notes.value = new Map([...notes.peek()].filter(([, one]) => one !== note));
}

/** Takes back all that is said. */
export function forgetNotes(): void {
  notes.value = new Map();
  asked.value = new Map();
  announcement.value = '';
}

interface MigrationFacts {
  readonly id: string;
  readonly instance_id: string;
  readonly outcome: 'completed' | 'failed' | null;
}

const told = new Set<string>();

/** Says how a migration went, when an event says that it is over: how long the guest stood still, where its sleds say so. */
export function noteMigration(object: unknown): void {
  const migration = object as MigrationFacts | null;
  if (migration?.outcome == null || told.has(migration.id)) return;
  told.add(migration.id);
  const instance = migration.instance_id;
  void done(api.GET('/v1/instances/{instance}/migration', { params: { path: { instance } } })).then(
    (seen) => {
      if (seen.id !== migration.id) return;
      const isGood = migration.outcome === 'completed';
      // Why it was refused, where that is said already, is more than that it failed.
      if (isGood || notes.peek().get(instance)?.tone !== 'bad')
        say([instance], { tone: isGood ? 'good' : 'bad', text: seen.summary, isMinor: !isGood });
    },
    // Deleted meanwhile, or out of reach: there is nothing to say.
    () => {},
  );
}

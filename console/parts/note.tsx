import { dismiss, notes } from '../store/notes.ts';

/** What is said about a subject (the id of an instance or a sled), with a button that takes it away. */
export function SubjectNote({ subject }: { subject: string }) {
  const note = notes.value.get(subject);
  if (note === undefined) return null;
  return (
    <div class={`note note-${note.tone}`} role={note.tone === 'bad' ? 'alert' : 'status'}>
      <span>{note.text}</span>
      <button type="button" class="quiet" aria-label="Dismiss this message" onClick={() => dismiss(subject)}>
        ✕
      </button>
    </div>
  );
}

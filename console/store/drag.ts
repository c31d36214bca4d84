/**
 * Dragging a tile onto a sled, by pointer: a mouse or a pen. Fingers scroll, and have the menu, as has the keyboard. By pointer
 * events and not the browser's own dragging, so that Escape, the picture under the pointer and its end are ours.
 */
import { signal } from '@preact/signals';
import type { Instance } from '../api/types.ts';
import { mayMigrate, migrate, migrateRefusal } from './actions.ts';
import { say } from './notes.ts';

/** From how far on a press is a drag, in pixels. */
const THRESHOLD = 6;

export interface Drag {
  readonly instance: Instance;
  /** Where the pointer is, in the window. */
  readonly x: number;
  readonly y: number;
  /** The sled under the pointer; `null`: none. */
  readonly over: string | null;
}

/** What is dragged; `null`: nothing. */
export const drag = signal<Drag | null>(null);

/** Begins a drag where a press on a tile becomes one. */
export function pressTile(event: PointerEvent, instance: Instance): void {
  if (event.button !== 0 || event.pointerType === 'touch' || !mayMigrate(instance)) return;
  const from = { x: event.clientX, y: event.clientY };
  const ending = new AbortController();
  const { signal: until } = ending;
  const move = ({ clientX: x, clientY: y, buttons }: PointerEvent) => {
    if (buttons === 0) return ending.abort();
    if (drag.peek() === null) {
      if (Math.hypot(x - from.x, y - from.y) < THRESHOLD) return;
      const refusal = migrateRefusal(instance);
      if (refusal !== null) {
        ending.abort();
        say([instance.id], { tone: 'bad', text: refusal });
        return;
      }
      document.documentElement.classList.add('is-dragging');
    }
    drag.value = { instance, x, y, over: sledAt(x, y) };
  };
  const drop = () => {
    const dropped = drag.peek();
    ending.abort();
    if (dropped === null) return;
    // The press has become a drag: the click that may follow at once opens no link.
    const swallow = (click: Event) => click.preventDefault();
    addEventListener('click', swallow, { capture: true, once: true });
    setTimeout(() => removeEventListener('click', swallow, { capture: true }), 0);
    if (dropped.over !== null && dropped.over !== instance.sled_id) void migrate(instance, dropped.over);
  };
  until.addEventListener('abort', () => {
    drag.value = null;
    document.documentElement.classList.remove('is-dragging');
  });
  addEventListener('pointermove', move, { signal: until });
  addEventListener('pointerup', drop, { signal: until });
  addEventListener('pointercancel', () => ending.abort(), { signal: until });
  addEventListener('blur', () => ending.abort(), { signal: until });
  addEventListener('keydown', ({ key }) => key === 'Escape' && ending.abort(), { signal: until });
}

/** The sled whose column is at a place of the window. */
function sledAt(x: number, y: number): string | null {
  const column = document.elementFromPoint(x, y)?.closest<HTMLElement>('[data-sled]');
  return column?.dataset.sled ?? null;
}

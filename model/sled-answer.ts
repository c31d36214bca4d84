/** What a sled agent's HTTP answer means for the one who called it (section 7 of docs/design.md). */
export const SLED_ANSWERS = ['accepted', 'gone', 'refused', 'retry'] as const;
export type SledAnswer = (typeof SLED_ANSWERS)[number];

/** The calls of the protocol that change something on a sled. */
export type SledCommand = 'register' | 'unregister' | 'state' | 'read';

const FINAL_STATUSES: ReadonlySet<number> = new Set([400, 401, 403, 409, 413, 422]);

/**
 * Classes an answer: `gone` is the only one that means "no such VMM"; `refused` is final; everything else that is not
 * a success is to be tried again, since it proves nothing. An error without a code is not a sled agent's: a proxy's, or
 * whoever lives at the address now. To `unregister` nothing is final but success and `gone`.
 */
export function classifySledAnswer(command: SledCommand, status: number, errorCode: string | undefined): SledAnswer {
  if (status >= 200 && status < 300) return 'accepted';
  if (status === 404) return errorCode === 'NO_SUCH_INSTANCE' ? 'gone' : 'retry';
  if (command === 'unregister') return 'retry';
  return FINAL_STATUSES.has(status) && errorCode !== undefined ? 'refused' : 'retry';
}

import { setMaxListeners } from 'node:events';

/**
 * Runs `work` with a signal that is aborted after `limitMs` milliseconds, with a `TimeoutError`, or with `over`, for its reason.
 * Throws what `work` throws.
 *
 * Not by `AbortSignal.any` with `AbortSignal.timeout`: where nothing else holds the latter, it may be collected, and then never
 * fires. Source: https://github.com/nodejs/node/issues/57736
 */
export async function withLimit<Result>(
  limitMs: number,
  over: AbortSignal,
  work: (signal: AbortSignal) => Promise<Result>,
): Promise<Result> {
  const limit = new AbortController();
  const end = () => limit.abort(over.reason);
  const timer = setTimeout(() => limit.abort(new DOMException('it took too long', 'TimeoutError')), limitMs);
  // Many may wait under one signal; each takes its listener away.
  setMaxListeners(0, over);
  if (over.aborted) end();
  else over.addEventListener('abort', end, { once: true });
  try {
    return await work(limit.signal);
  } finally {
    clearTimeout(timer);
    over.removeEventListener('abort', end);
  }
}

/**
 * What `work` comes to, or what `late` gives when that takes longer than `limitMs` milliseconds; the work goes on. Throws what either
 * throws.
 */
export async function within<Result, Late>(
  limitMs: number,
  work: Promise<Result>,
  late: () => Late,
): Promise<Result | Late> {
  let timer: NodeJS.Timeout | undefined;
  const over = new Promise<void>((resolve) => {
    timer = setTimeout(resolve, Math.max(0, limitMs));
  });
  try {
    return await Promise.race([work, over.then(late)]);
  } finally {
    clearTimeout(timer);
  }
}

/** Waits for work, but no longer than `ms` milliseconds, and whatever becomes of it. */
export async function withinTime(work: Promise<unknown>, ms: number): Promise<void> {
  await within(
    ms,
    work.catch(() => {}),
    () => {},
  );
}

/** Things that no event carries, asked for as long as they are shown: a step, the bytes of a migration, a drain. */
import { useEffect, useState } from 'preact/hooks';
import { ApiProblem, api, done } from '../api/client.ts';
import type { Drain, Migration, Operation } from '../api/types.ts';

/** How often what moves is looked at, in milliseconds, as long as somebody sees it. */
const LOOK_EVERY_MS = 1_000;

/**
 * Reads something again and again while it is shown. `undefined` until it was read, or while it can't be; a failure is waited out.
 * `key`: what is read; with `null` nothing is.
 */
export function useWatched<Value>(
  key: string | null,
  read: (key: string, signal: AbortSignal) => Promise<Value>,
  isOver: (value: Value) => boolean = () => false,
): Value | undefined {
  const [seen, setSeen] = useState<{ key: string; value: Value } | undefined>(undefined);
  useEffect(() => {
    if (key === null) return;
    const ending = new AbortController();
    let timer: ReturnType<typeof setTimeout> | undefined;
    const look = async () => {
      try {
        if (document.visibilityState === 'visible') {
          const value = await read(key, ending.signal);
          if (ending.signal.aborted) return;
          setSeen({ key, value });
          if (isOver(value)) return;
        }
      } catch (error) {
        if (ending.signal.aborted || (error instanceof ApiProblem && [401, 403, 404].includes(error.status))) return;
      }
      timer = setTimeout(() => void look(), LOOK_EVERY_MS);
    };
    void look();
    return () => {
      clearTimeout(timer);
      ending.abort();
    };
  }, [key]);
  return seen?.key === key ? seen.value : undefined;
}

/** The step of an operation that is under way. */
export function useOperation(id: string | null): Operation | undefined {
  return useWatched(
    id,
    (operation_id, signal) =>
      done(api.GET('/v1/operations/{operation_id}', { params: { path: { operation_id } }, signal })),
    ({ state }) => state === 'done',
  );
}

/** How far the newest migration of an instance is; `instanceId` is `null` while it has none under way. */
export function useMigration(instanceId: string | null): Migration | undefined {
  return useWatched(
    instanceId,
    (instance, signal) =>
      done(api.GET('/v1/instances/{instance}/migration', { params: { path: { instance } }, signal })),
    ({ outcome }) => outcome !== null,
  );
}

/** The drain of a sled, the one under way or the last. */
export function useDrain(sledId: string | null): Drain | undefined {
  return useWatched(sledId, (sled_id, signal) =>
    done(api.GET('/v1/system/hardware/sleds/{sled_id}/drain', { params: { path: { sled_id } }, signal })),
  );
}

import { NativeConnection } from '@temporalio/worker';
import { within } from '../platform/host/with-limit.ts';
import { CONNECT_TIMEOUT_MS, explainUnreachable, type TemporalSettings } from './connection.ts';

/**
 * Connects a worker. The SDK sets no limit to how long that may take: a server that accepts and says nothing would be waited
 * for as long as it does so. Throws when no server answers within {@link CONNECT_TIMEOUT_MS}, with where it was looked for.
 */
export async function connectNative(
  settings: TemporalSettings['connection'],
  timeoutMs = CONNECT_TIMEOUT_MS,
): Promise<NativeConnection> {
  const connecting = NativeConnection.connect(settings);
  try {
    return await within(timeoutMs, connecting, () => {
      throw new Error(`it gave no answer within ${timeoutMs / 1_000} s`);
    });
  } catch (error) {
    // One that comes after all is nobody's.
    connecting.then((connection) => connection.close()).catch(() => {});
    throw explainUnreachable(error, { connection: settings, namespace: 'default' });
  }
}

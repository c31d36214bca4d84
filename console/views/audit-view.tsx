import { useEffect, useState } from 'preact/hooks';
import { api, done, messageOf } from '../api/client.ts';
import type { AuditEntry } from '../api/types.ts';
import { lateAuditEntries } from '../store/fleet.ts';
import { formatTime } from '../words.ts';

const PAGE = 50;

/** The audit log: who had what done, the newest first. What is done now comes up by itself. */
export function AuditView() {
  const [older, setOlder] = useState<readonly AuditEntry[]>([]);
  const [next, setNext] = useState<string | null>(null);
  const [problem, setProblem] = useState<string | null>(null);
  const read = async (page_token: string | null) => {
    try {
      const query = {
        limit: PAGE,
        sort_by: 'time_and_id_descending',
        ...(page_token === null ? {} : { page_token }),
      } as const;
      const page = await done(api.GET('/v1/system/audit-log', { params: { query } }));
      setOlder((before) => (page_token === null ? page.items : [...before, ...page.items]));
      setNext(page.next_page);
      setProblem(null);
    } catch (error) {
      setProblem(messageOf(error));
    }
  };
  useEffect(() => void read(null), []);
  const known = new Set(older.map(({ id }) => id));
  const entries = [...lateAuditEntries.value.filter(({ id }) => !known.has(id)), ...older];
  return (
    <>
      <h1>Audit</h1>
      {problem !== null && <p class="is-bad">{problem}</p>}
      {/* biome-ignore lint/a11y/noNoninteractiveTabindex: what scrolls must be within reach of the keyboard */}
      <section class="scrolls" aria-label="Audit log" tabIndex={0}>
        <table class="audit">
          <thead>
            <tr>
              <th scope="col">when</th>
              <th scope="col">who</th>
              <th scope="col">what</th>
              <th scope="col">about</th>
              <th scope="col">came to</th>
            </tr>
          </thead>
          <tbody>
            {entries.map((entry) => (
              <tr key={entry.id}>
                <td>
                  <time dateTime={entry.time_completed}>{formatTime(entry.time_completed)}</time>
                </td>
                <td>
                  {entry.actor_name} <small>{entry.actor_kind}</small>
                </td>
                <td>{entry.operation_id}</td>
                <td>{[entry.subject_kind, entry.subject].filter((part) => part !== null).join(' ')}</td>
                <td class={entry.result.kind === 'error' ? 'is-bad' : ''}>{resultOf(entry)}</td>
              </tr>
            ))}
          </tbody>
        </table>
      </section>
      {next !== null && (
        <button type="button" onClick={() => void read(next)}>
          Older
        </button>
      )}
    </>
  );
}

function resultOf({ result }: AuditEntry): string {
  if (result.kind === 'error') return `${result.http_status_code}: ${result.error_message}`;
  return result.kind === 'success' ? `success (${result.http_status_code})` : 'unknown';
}

import type { Command } from 'commander';
import type { AuditLogEntry } from '../../wire/operator-api/audit-log.ts';
import { type ApiOptions, contextOf, withApiOptions } from '../context.ts';
import { colours, parseDuration } from '../format.ts';
import { table } from '../output.ts';
import { SUMMARIES } from '../summaries.ts';

const DEFAULT_LIMIT = 50;

/** Adds `mooring audit`. */
export function addAuditCommand(program: Command): void {
  withApiOptions(program.command('audit'))
    .description(SUMMARIES.audit)
    .option('--since <when>', 'only what ended since then: a span of time, for example 2h, or a time in ISO 8601')
    .option('--until <when>', 'only what ended before then')
    .option('--limit <n>', 'how many, the newest of them', Number, DEFAULT_LIMIT)
    .option('--failed', 'only what did not succeed')
    .action(async (options: ApiOptions & { since?: string; until?: string; limit: number; failed?: boolean }) => {
      if (!Number.isInteger(options.limit) || options.limit < 1) throw new Error('--limit: a number above 0 is needed');
      const context = contextOf(options);
      const found: AuditLogEntry[] = [];
      for await (const entry of context.client.listAuditLog({
        newestFirst: true,
        since: momentOf('--since', options.since),
        until: momentOf('--until', options.until),
      })) {
        if (options.failed && entry.result.kind === 'success') continue;
        found.push(entry);
        if (found.length >= options.limit) break;
      }
      found.reverse();
      context.print(found, () =>
        table(
          ['COMPLETED', 'WHO', 'FROM', 'WHAT', 'ON', 'RESULT'],
          found.map((one) => [
            one.time_completed,
            one.actor_name,
            one.actor_kind === 'system' || one.actor_kind === 'database' ? '-' : one.source_ip,
            one.operation_id,
            one.subject === null ? '-' : `${one.subject_kind} ${one.subject}`,
            resultOf(one),
          ]),
        ),
      );
    });
}

function resultOf({ result }: AuditLogEntry): string {
  switch (result.kind) {
    case 'success':
      return colours.green('success');
    case 'error':
      return colours.red(`${result.http_status_code} ${result.error_code ?? ''}: ${result.error_message}`);
    case 'unknown':
      return colours.yellow('unknown');
  }
}

/** Reads an option that is a moment in ISO 8601, or a span of time ago; `undefined` when absent. Throws for anything else. */
function momentOf(option: string, text: string | undefined): string | undefined {
  if (text === undefined) return undefined;
  if (/^\d+[smhd]$/.test(text)) return new Date(Date.now() - parseDuration(text) * 1000).toISOString();
  const moment = new Date(text);
  if (Number.isNaN(moment.getTime()))
    throw new Error(`${option}: "${text}" is neither a span of time (2h) nor a time (2026-01-31T12:00:00Z)`);
  return moment.toISOString();
}

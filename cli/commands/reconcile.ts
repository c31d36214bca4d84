import type { Command } from 'commander';
import { RECONCILER_PURPOSE, RECONCILERS, type ReconcilerName } from '../../model/reconcilers.ts';
import type { ReconcilerView } from '../../wire/operator-api/reconcilers.ts';
import { type ApiOptions, contextOf, subcommandsOf } from '../context.ts';
import { colours } from '../format.ts';
import { table } from '../output.ts';
import { SUMMARIES } from '../summaries.ts';

/** Adds `mooring reconcile …`. */
export function addReconcileCommands(program: Command): void {
  const reconcile = program.command('reconcile').description(SUMMARIES.reconcile);
  const sub = subcommandsOf(reconcile);

  for (const name of RECONCILERS) {
    sub(name, `run one pass now, also while it is switched off: ${RECONCILER_PURPOSE[name]}`).action(
      async (options: ApiOptions) => {
        const context = contextOf(options);
        const pass = await context.client.runReconciler(name);
        context.print(pass, () =>
          [
            pass.summary,
            ...Object.entries(pass.found).flatMap(([what, ids]) =>
              Array.isArray(ids) && ids.length > 0 ? [`  ${what.replaceAll('_', ' ')}: ${ids.join(', ')}`] : [],
            ),
          ].join('\n'),
        );
      },
    );
  }
  sub('list', 'list the loops').action(async (options: ApiOptions) => {
    const context = contextOf(options);
    const found = await context.client.listReconcilers();
    context.print(found, () => reconcilerTable(found));
  });
  for (const [verb, enabled] of [
    ['enable', true],
    ['disable', false],
  ] as const) {
    sub(`${verb} <name>`, enabled ? 'switch a loop on' : 'switch a loop off').action(
      async (name: string, options: ApiOptions) => {
        const known = RECONCILERS.find((one) => one === name);
        if (known === undefined)
          throw new Error(`there is no reconciler "${name}": they are ${RECONCILERS.join(', ')}`);
        const context = contextOf(options);
        const now = await context.client.setReconciler(known satisfies ReconcilerName, enabled);
        context.print(now, () => reconcilerTable([now]));
      },
    );
  }
}

function reconcilerTable(loops: ReconcilerView[]): string {
  return table(
    ['NAME', 'STATE', 'EVERY', 'LAST RUN', 'IT SAID'],
    loops.map((one) => [
      one.name,
      one.enabled ? colours.green('on') : one.scheduled ? colours.yellow('off') : colours.dim('not scheduled'),
      one.every_seconds === null ? '-' : `${one.every_seconds} s`,
      one.time_last_run ?? '-',
      one.last_summary ?? '-',
    ]),
  );
}

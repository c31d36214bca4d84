import { useState } from 'preact/hooks';
import type { Instance } from '../api/types.ts';
import { type Action, act, actionsOf, mayMigrate, migrateRefusal } from '../store/actions.ts';
import { Confirmation, Destinations } from './instance-menu.tsx';

/** What one may do to an instance, as buttons; of those that can't be done now, why. */
export function InstanceActions({ instance }: { instance: Instance }) {
  const [asked, setAsked] = useState<Action | 'migrate' | null>(null);
  const close = () => setAsked(null);
  const refusal = migrateRefusal(instance);
  return (
    <div class="actions" role="toolbar" aria-label={`Actions for ${instance.name}`}>
      {mayMigrate(instance) && (
        <button
          type="button"
          disabled={refusal !== null}
          title={refusal ?? undefined}
          onClick={() => setAsked('migrate')}
        >
          Migrate…
        </button>
      )}
      {actionsOf(instance).map((action) => (
        <button
          key={action.name}
          type="button"
          class={action.asks === null ? '' : 'danger'}
          disabled={action.refusal !== null}
          title={action.refusal ?? undefined}
          onClick={() => (action.asks === null ? void act(instance, action.name) : setAsked(action))}
        >
          {action.asks === null ? action.label : `${action.label}…`}
        </button>
      ))}
      {asked === 'migrate' && <Destinations instance={instance} onClose={close} />}
      {asked !== null && asked !== 'migrate' && <Confirmation instance={instance} action={asked} onClose={close} />}
    </div>
  );
}

import { signal } from '@preact/signals';
import { useState } from 'preact/hooks';
import type { Instance, Sled } from '../api/types.ts';
import { hrefOf } from '../routes.ts';
import {
  type Action,
  act,
  actionsOf,
  destinationDoubt,
  mayMigrate,
  migrate,
  migrateRefusal,
} from '../store/actions.ts';
import { instanceOf, sledList } from '../store/fleet.ts';
import { counted, formatBytes } from '../words.ts';
import { Dialog } from './dialog.tsx';
import { StateWord } from './state-word.tsx';

const opened = signal<string | null>(null);

/** Opens the menu of an instance. */
export function openMenu(instanceId: string): void {
  opened.value = instanceId;
}

/** The menu of the instance for which it was opened: all that can be done to it, moving it to a sled included. */
export function InstanceMenu() {
  const instance = opened.value === null ? undefined : instanceOf(opened.value);
  if (instance === undefined) return null;
  return <Menu key={instance.id} instance={instance} onClose={() => (opened.value = null)} />;
}

function Menu({ instance, onClose }: { instance: Instance; onClose: () => void }) {
  const [moving, setMoving] = useState(false);
  const [asked, setAsked] = useState<Action | null>(null);
  if (asked !== null) return <Confirmation instance={instance} action={asked} onClose={onClose} />;
  if (moving) return <Destinations instance={instance} onClose={onClose} />;
  const refusal = migrateRefusal(instance);
  return (
    <Dialog title={instance.name} onClose={onClose}>
      <p>
        <StateWord state={instance.run_state} />
      </p>
      <div class="menu">
        <a class="button" href={hrefOf({ view: 'instance', id: instance.id })} onClick={onClose}>
          Open
        </a>
        {mayMigrate(instance) && (
          <MenuButton label="Migrate to a sled…" refusal={refusal} onClick={() => setMoving(true)} />
        )}
        {actionsOf(instance).map((action) => (
          <MenuButton
            key={action.name}
            label={action.asks === null ? action.label : `${action.label}…`}
            refusal={action.refusal}
            onClick={() => {
              if (action.asks !== null) return setAsked(action);
              onClose();
              void act(instance, action.name);
            }}
          />
        ))}
      </div>
    </Dialog>
  );
}

function MenuButton({ label, refusal, onClick }: { label: string; refusal: string | null; onClick: () => void }) {
  return (
    <div class="menu-item">
      <button type="button" disabled={refusal !== null} onClick={onClick}>
        {label}
      </button>
      {refusal !== null && <small>{refusal}</small>}
    </div>
  );
}

/** Asks before what can't be taken back, with the words of what one vouches for. */
export function Confirmation({
  instance,
  action,
  onClose,
}: {
  instance: Instance;
  action: Action;
  onClose: () => void;
}) {
  const [vouched, setVouched] = useState(false);
  return (
    <Dialog title={`${action.label}: ${instance.name}`} onClose={onClose}>
      <p>{action.asks}</p>
      {action.vouches !== null && (
        <label class="vouch">
          <input type="checkbox" checked={vouched} onChange={(event) => setVouched(event.currentTarget.checked)} />
          <span>{action.vouches}</span>
        </label>
      )}
      <div class="dialog-end">
        <button type="button" onClick={onClose}>
          Cancel
        </button>
        <button
          type="button"
          class="danger"
          disabled={action.vouches !== null && !vouched}
          onClick={() => {
            onClose();
            void act(instance, action.name, vouched);
          }}
        >
          {action.label}
        </button>
      </div>
    </Dialog>
  );
}

/** The sleds that an instance can be moved to, those with room first: the twin of dragging it. */
export function Destinations({ instance, onClose }: { instance: Instance; onClose: () => void }) {
  const [text, setText] = useState('');
  const sleds = sledList.value
    .filter((sled) => sled.policy.kind === 'in_service' && sled.name.includes(text.trim()))
    .map((sled) => ({ sled, doubt: destinationDoubt(instance, sled) }))
    .sort((one, other) => Number(one.doubt !== null) - Number(other.doubt !== null));
  return (
    <Dialog title={`Migrate ${instance.name} to`} onClose={onClose}>
      {sledList.value.length > 8 && (
        <input
          type="search"
          placeholder="Name of a sled"
          aria-label="Name of a sled"
          value={text}
          onInput={(event) => setText(event.currentTarget.value)}
        />
      )}
      <ul class="menu destinations">
        {sleds.slice(0, 50).map(({ sled, doubt }) => (
          <li key={sled.id}>
            <button
              type="button"
              disabled={sled.id === instance.sled_id}
              onClick={() => {
                onClose();
                void migrate(instance, sled.id);
              }}
            >
              <strong>{sled.name}</strong> <small>{doubt ?? freeRoom(sled)}</small>
            </button>
          </li>
        ))}
      </ul>
      {sleds.length > 50 && <p>{counted(sleds.length - 50, 'more sled')}: search by name.</p>}
    </Dialog>
  );
}

function freeRoom(sled: Sled): string {
  const free = Math.max(0, sled.threads - sled.threads_reserved);
  return `${counted(free, 'thread')}, ${formatBytes(Math.max(0, sled.memory - sled.memory_reserved))} free`;
}

import { signal } from '@preact/signals';
import { useEffect } from 'preact/hooks';
import { api, done, messageOf } from './api/client.ts';
import { may, me, signOut, token } from './api/session.ts';
import { InstanceMenu } from './parts/instance-menu.tsx';
import { hrefOf, type Route, routeOf } from './routes.ts';
import { followFleet, forgetFleet, isLoaded, loadProblem, stream } from './store/fleet.ts';
import { announcement } from './store/notes.ts';
import { THEMES, theme } from './theme.ts';
import { ActivityView } from './views/activity-view.tsx';
import { AuditView } from './views/audit-view.tsx';
import { FleetView } from './views/fleet-view.tsx';
import { InstanceView } from './views/instance-view.tsx';
import { InstancesView } from './views/instances-view.tsx';
import { LoginView } from './views/login-view.tsx';
import { SledView } from './views/sled-view.tsx';

const route = signal<Route>(routeOf(location.hash));
const meProblem = signal<string | null>(null);
addEventListener('hashchange', () => {
  route.value = routeOf(location.hash);
  scrollTo(0, 0);
});

/** How long until the API is asked again who one is, in milliseconds, where it did not answer. */
const ASK_AGAIN_MS = 2_000;

/** Asks the API who one is. One who needs a token, and has none that is good, has it asked for. */
async function askWho(signal: AbortSignal): Promise<void> {
  while (!signal.aborted) {
    try {
      const who = await done(api.GET('/v1/me', { signal }));
      if (!signal.aborted) me.value = who;
      meProblem.value = null;
      return;
    } catch (error) {
      if (signal.aborted) return;
      // Why, where there is something to say, was said as the token was refused.
      if (isUnauthorized(error)) {
        needsLogin.value = true;
        return;
      }
      meProblem.value = messageOf(error);
      await new Promise((resolve) => setTimeout(resolve, ASK_AGAIN_MS));
    }
  }
}
const needsLogin = signal(false);

function isUnauthorized(error: unknown): boolean {
  return typeof error === 'object' && error !== null && 'status' in error && error.status === 401;
}

/** The whole page. */
export function App() {
  const secret = token.value;
  const who = me.value;
  useEffect(() => {
    const ending = new AbortController();
    needsLogin.value = false;
    void askWho(ending.signal);
    return () => ending.abort();
  }, [secret]);
  const isKnown = who !== null;
  useEffect(() => {
    if (!isKnown) return;
    const ending = new AbortController();
    void followFleet(ending.signal);
    return () => {
      ending.abort();
      forgetFleet();
    };
  }, [isKnown, secret]);
  if (who === null)
    return needsLogin.value ? <LoginView /> : <main class="login">{meProblem.value ?? 'Looking…'}</main>;
  return (
    <>
      <button type="button" class="skip" onClick={() => document.getElementById('main')?.focus()}>
        Skip to the content
      </button>
      <Head />
      <main id="main" tabIndex={-1}>
        {loadProblem.value !== null && (
          <p class="note note-bad" role="alert">
            The fleet could not be read: {loadProblem.value}
          </p>
        )}
        <View route={route.value} />
      </main>
      <InstanceMenu />
      <p class="for-readers" role="status" aria-live="polite">
        {announcement.value}
      </p>
    </>
  );
}

function View({ route }: { route: Route }) {
  if (!isLoaded.value) return <p>Looking…</p>;
  switch (route.view) {
    case 'fleet':
      return <FleetView />;
    case 'instances':
      return <InstancesView />;
    case 'instance':
      return <InstanceView key={route.id} id={route.id} />;
    case 'sled':
      return <SledView key={route.id} id={route.id} />;
    case 'activity':
      return <ActivityView />;
    case 'audit':
      return may('audit_log_list') ? <AuditView /> : <p>The audit log is the whole fleet’s, and not for this token.</p>;
  }
}

function Head() {
  const who = me.value;
  return (
    <header class="head">
      <a class="brand" href="#/">
        Mooring
      </a>
      <nav aria-label="Views">
        <NavLink to={{ view: 'fleet' }} label="Fleet" />
        <NavLink to={{ view: 'instances' }} label="Instances" />
        <NavLink to={{ view: 'activity' }} label="Activity" />
        {may('audit_log_list') && <NavLink to={{ view: 'audit' }} label="Audit" />}
        <a href="/docs">API</a>
      </nav>
      <StreamWord />
      <label class="theme">
        <span class="for-readers">Theme</span>
        <select
          value={theme.value}
          onChange={(event) => {
            theme.value = THEMES.find((one) => one === event.currentTarget.value) ?? 'system';
          }}
        >
          {THEMES.map((one) => (
            <option key={one} value={one}>
              {one === 'system' ? 'as the system' : one}
            </option>
          ))}
        </select>
      </label>
      {who !== null && who.kind !== 'local' && (
        <span class="who">
          {who.display_name} <small>({who.role})</small>{' '}
          <button type="button" class="quiet" onClick={() => signOut(null)}>
            Log out
          </button>
        </span>
      )}
    </header>
  );
}

function NavLink({ to, label }: { to: Route; label: string }) {
  return (
    <a href={hrefOf(to)} {...(route.value.view === to.view ? { 'aria-current': 'page' as const } : {})}>
      {label}
    </a>
  );
}

function StreamWord() {
  const state = stream.value;
  const words = state.state === 'broken' ? `not live: ${state.why}` : state.state;
  return (
    <span class={`stream stream-${state.state}`} role="status">
      <span aria-hidden="true">{state.state === 'live' ? '●' : '○'}</span> {words}
    </span>
  );
}

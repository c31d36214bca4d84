import { useState } from 'preact/hooks';
import { loginReason, signIn } from '../api/session.ts';

/** Where one says who one is. */
export function LoginView() {
  const [secret, setSecret] = useState('');
  const reason = loginReason.value;
  return (
    <main class="login">
      <h1>Mooring</h1>
      <form
        onSubmit={(event) => {
          event.preventDefault();
          if (secret.trim() !== '') signIn(secret.trim());
        }}
      >
        <label for="token">Access token</label>
        <input
          id="token"
          type="password"
          autoComplete="off"
          spellcheck={false}
          required
          value={secret}
          onInput={(event) => setSecret(event.currentTarget.value)}
        />
        <p>It stays in this tab, and goes with it. An admin makes one with "mooring token create".</p>
        {reason !== null && (
          <p class="is-bad" role="alert">
            {reason}
          </p>
        )}
        <button type="submit">Log in</button>
      </form>
    </main>
  );
}

/** The console: a page that shows the fleet, and moves a guest when one drags it. */
import { render } from 'preact';
import { App } from './app.tsx';
import { followTheme } from './theme.ts';

followTheme();
const place = document.getElementById('console');
if (place === null) throw new Error('the page has no place for the console');
render(<App />, place);

/** What the viewer of the document leaves out for keyboards and screen readers, put in as it draws. */

/** Mends what is drawn below `root`, now and from now on. */
export function keepWithinReach(root: HTMLElement): void {
  new MutationObserver(() => mend(root)).observe(root, { childList: true, subtree: true });
  mend(root);
}

function mend(root: HTMLElement): void {
  // A choice has the name of its parameter.
  for (const choice of root.querySelectorAll<HTMLSelectElement>('select:not([aria-label], [id])')) {
    const name = choice.closest<HTMLElement>('[data-param-name]')?.dataset.paramName;
    choice.setAttribute('aria-label', name ?? 'choice');
  }
  // What scrolls is reached by the keyboard.
  for (const example of root.querySelectorAll('pre.microlight:not([tabindex])')) example.setAttribute('tabindex', '0');
  // A button that opens an endpoint is no place for a link to the same endpoint.
  for (const link of root.querySelectorAll('.opblock-summary-control a[href]')) link.removeAttribute('href');
}

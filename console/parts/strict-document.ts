/**
 * A document for xterm.js, which styles what it draws by style elements and style attributes: a Content-Security-Policy without
 * `unsafe-inline` refuses both. The same rules, as constructed style sheets and by the style's own properties, it lets in.
 */

/**
 * Lets what makes elements of the page's own document, while `make` runs, make strict ones: xterm.js 6 makes some of its parts by
 * that, whatever document it was given. Throws what `make` throws.
 */
export function withStrictElements(make: () => void): void {
  document.createElement = createElement as Document['createElement'];
  try {
    make();
  } finally {
    // The document's own is in its prototype.
    Reflect.deleteProperty(document, 'createElement');
  }
}

/** The document, but for how style gets in. */
export function strictDocument(): Document {
  return new Proxy(document, {
    get(target, name) {
      if (name === 'createElement') return createElement;
      const value: unknown = Reflect.get(target, name, target);
      return typeof value === 'function' ? value.bind(target) : value;
    },
    set: (target, name, value) => Reflect.set(target, name, value, target),
  });
}

function original(tag: string): HTMLElement {
  return Document.prototype.createElement.call(document, tag);
}

function createElement(tag: string): HTMLElement {
  if (tag === 'style') return sheetElement();
  const element = original(tag);
  const setAttribute = element.setAttribute.bind(element);
  element.setAttribute = (name, value) => {
    if (name === 'style') element.style.cssText = value;
    else setAttribute(name, value);
  };
  return element;
}

/** An element whose text becomes a style sheet of the document for as long as it is not removed. */
function sheetElement(): HTMLElement {
  const element = original('span');
  element.hidden = true;
  const sheet = new CSSStyleSheet();
  document.adoptedStyleSheets.push(sheet);
  Object.defineProperty(element, 'textContent', { set: (rules: string) => sheet.replaceSync(rules) });
  const remove = element.remove.bind(element);
  element.remove = () => {
    document.adoptedStyleSheets = document.adoptedStyleSheets.filter((one) => one !== sheet);
    remove();
  };
  return element;
}

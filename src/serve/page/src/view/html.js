// JSX without a compiler: html`<p>${text}</p>`. Values become text nodes and properties, never markup.

import htm from 'htm';
import { Component, h } from 'preact';

export const html = htm.bind(h);

/** Returns a component that is only rendered again when one of its properties is another value. */
export function memo(render) {
  return class Memo extends Component {
    shouldComponentUpdate(next) {
      const names = new Set([...Object.keys(this.props), ...Object.keys(next)]);
      return [...names].some((name) => this.props[name] !== next[name]);
    }

    render() {
      return h(render, this.props);
    }
  };
}

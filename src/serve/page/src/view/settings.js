// The settings: what the conversation asks of the model, and how the page looks.

import { hasKey, resetSettings, setSettings } from '../model/conversations.js';
import { FORMATS, PARAMETERS, accepts, schemaOf } from '../model/settings.js';
import { change, currentSettings, state } from '../model/state.js';
import { save } from '../store/preferences.js';
import { LANGUAGES, number, speak, t } from '../words/index.js';
import { Dialog } from './dialog.js';
import { CheckedField, Choice } from './field.js';
import { html } from './html.js';

/** Takes a language. */
export function setLanguage(language) {
  save('language', language);
  speak(language);
  change({ language });
}

/** Takes a theme: `auto`, `light` or `dark`. */
export function setTheme(theme) {
  save('theme', theme);
  applyTheme(theme);
  change({ theme });
}

/** Has the style sheet use a theme. */
export function applyTheme(theme) {
  if (theme === 'auto') delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
}

function Parameter({ parameter, settings }) {
  const { name, min, max, integer } = parameter;
  const known = state.server.defaults[name];
  const value = settings.sampling[name];
  const check = (text) => {
    if (text.trim() === '' || accepts(parameter, Number(text))) return '';
    return t(integer ? 'out_of_range_integer' : 'out_of_range', { min: number(min, 2), max: number(max, 2) });
  };
  const take = (text) => {
    const { [name]: _, ...others } = settings.sampling;
    setSettings({ sampling: text.trim() === '' ? others : { ...others, [name]: Number(text) } });
  };
  // -1 stands for "at random" or "no limit" there.
  const named = typeof known === 'number' && known >= min;
  const placeholder = named ? t('default_of', { value: number(known, 3) }) : t('default_value');
  return html`<${CheckedField}
    id=${`set-${name}`} label=${t(name)} hint=${t(`${name}_hint`)} value=${value === undefined ? '' : String(value)}
    check=${check} take=${take} placeholder=${placeholder}
    inputmode=${integer ? 'numeric' : 'decimal'} autocomplete="off"
  />`;
}

function Answers({ settings }) {
  const { models } = state.server;
  const schemaComplaint = (text) => {
    try {
      schemaOf(text);
      return '';
    } catch (error) {
      return t('schema_wrong', { reason: error.message });
    }
  };
  const model = models.includes(settings.model) ? settings.model : models[0];
  return html`<section>
    <h3>${t('answers')}</h3>
    <p class="hint">${t('settings_note')}</p>
    ${
      models.length > 1 &&
      html`<${Choice} id="set-model" label=${t('model')} value=${model} options=${models.map((id) => [id, id])}
      take=${(value) => setSettings({ model: value })} />`
    }
    <${CheckedField} id="set-system" area label=${t('system')} hint=${t('system_hint')} value=${settings.system}
      check=${() => ''} take=${(system) => setSettings({ system })} />
    <${Choice} id="set-format" label=${t('format')} value=${settings.format}
      options=${FORMATS.map((name) => [name, t(`format_${name}`)])} take=${(format) => setSettings({ format })} />
    ${
      settings.format === 'schema' &&
      html`<${CheckedField} id="set-schema" area label=${t('schema')} hint="" value=${settings.schema}
      check=${schemaComplaint} take=${(schema) => setSettings({ schema })} spellcheck=${false} class="mono" />`
    }
  </section>`;
}

/** The dialog. */
export function Settings() {
  const settings = currentSettings();
  const languages = Object.entries(LANGUAGES).map(([name, language]) => [name, language.name]);
  return html`<${Dialog} title=${t('settings')} kind="side">
    <${Answers} settings=${settings} />
    <section>
      <h3>${t('sampling')}</h3>
      <p class="hint">${t('sampling_note')}</p>
      <div class="grid">
        ${PARAMETERS.map((each) => html`<${Parameter} key=${each.name} parameter=${each} settings=${settings} />`)}
      </div>
      <button type="button" onClick=${resetSettings}>${t('reset')}</button>
    </section>
    <section>
      <h3>${t('appearance')}</h3>
      <div class="grid">
        <${Choice} id="set-language" label=${t('language')} value=${state.language} take=${setLanguage}
          options=${[['auto', t('automatic')], ...languages]} />
        <${Choice} id="set-theme" label=${t('theme')} value=${state.theme} take=${setTheme}
          options=${[
            ['auto', t('automatic')],
            ['light', t('light')],
            ['dark', t('dark')],
          ]} />
      </div>
    </section>
    <section>
      <h3>${t('about')}</h3>
      <p><a href="page/licences.txt" target="_blank" rel="noopener">${t('licences')}</a></p>
      <div class="row">
        <button type="button" onClick=${() => change({ dialog: { name: 'shortcuts' } })}>${t('shortcuts')}</button>
        ${
          hasKey() &&
          html`<button type="button" onClick=${() => change({ dialog: { name: 'key' } })}>${t('change_key')}</button>`
        }
      </div>
    </section>
  <//>`;
}

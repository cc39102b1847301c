// Where the page begins: each part is started once, then the conversation of the address is opened.

import { drawIcons, part } from './dom.js';
import { prepareDialog } from './dialogs.js';
import { startComposer } from './composer.js';
import { startModelDialog } from './model_dialog.js';
import { startModelList } from './model_list.js';
import { session } from './session.js';
import { startSettings } from './settings.js';
import { startSidebar } from './sidebar.js';
import { notice } from './status.js';
import { startTranscript } from './transcript.js';

drawIcons();
startSettings();
startTranscript();
startComposer();
startSidebar();
startModelDialog();
prepareDialog('question');
session.addEventListener('failed', ({ detail }) => notice(`This browser could not keep the conversation: ${detail.message}`));
startModelList();
const isHere = ['localhost', '127.0.0.1', '[::1]'].includes(location.hostname);
part('welcome-note').textContent = isHere ? 'Nothing you write here leaves this machine.' : `What you write here goes to ${location.host} and nowhere else.`;
await session.begin();
if (!session.store.lasts) notice('This browser keeps nothing for this page: conversations are gone when it closes.');
if (matchMedia('(pointer: fine)').matches) part('prompt').focus();
document.body.dataset.ready = 'true';

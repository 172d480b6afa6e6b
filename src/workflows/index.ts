export { conversationTurn } from "./conversationTurn.ts";

"""The OpenAI and Anthropic APIs as in Ollama: conversion of client bodies to bodies for vLLM's routes (§5)."""

// Command versions answers questions about the Go libraries with which other tools select tags.
//
// It reads a JSON list of questions from standard input and writes a JSON list of answers. An answer is null if the
// library rejects the expression.
package main

import (
	"encoding/json"
	"log"
	"os"
	"regexp"

	masterminds "github.com/Masterminds/semver/v3"
	blang "github.com/blang/semver/v4"
)

type question struct {
	// Library is masterminds, blang, regexp or replace.
	Library string `json:"library"`
	// Expression is a range of versions or a regular expression.
	Expression string `json:"expression"`
	// Replacement is the second argument of ReplaceAllString.
	Replacement string `json:"replacement"`
	// Texts are the tags to select from, or the texts in which to replace.
	Texts []string `json:"texts"`
}

func keep(texts []string, selected func(string) bool) []string {
	found := []string{}
	for _, text := range texts {
		if selected(text) {
			found = append(found, text)
		}
	}
	return found
}

func answer(q question) []string {
	switch q.Library {
	case "masterminds":
		constraint, err := masterminds.NewConstraint(q.Expression)
		if err != nil {
			return nil
		}
		return keep(q.Texts, func(text string) bool {
			version, err := masterminds.NewVersion(text)
			return err == nil && constraint.Check(version)
		})
	case "blang":
		inRange, err := blang.ParseRange(q.Expression)
		if err != nil {
			return nil
		}
		return keep(q.Texts, func(text string) bool {
			version, err := blang.ParseTolerant(text)
			return err == nil && inRange(version)
		})
	}
	expression, err := regexp.Compile(q.Expression)
	if err != nil {
		return nil
	}
	if q.Library == "regexp" {
		return keep(q.Texts, expression.MatchString)
	}
	replaced := []string{}
	for _, text := range q.Texts {
		replaced = append(replaced, expression.ReplaceAllString(text, q.Replacement))
	}
	return replaced
}

func main() {
	var questions []question
	if err := json.NewDecoder(os.Stdin).Decode(&questions); err != nil {
		log.Fatal(err)
	}
	answers := make([][]string, len(questions))
	for number, q := range questions {
		answers[number] = answer(q)
	}
	if err := json.NewEncoder(os.Stdout).Encode(answers); err != nil {
		log.Fatal(err)
	}
}

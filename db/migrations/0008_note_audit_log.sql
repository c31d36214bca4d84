-- A record is there for readers once it is complete; an answer may be written over it.
CREATE FUNCTION note_audit_record() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  PERFORM note_change('audit', NEW.id, NULL);
  RETURN NULL;
END $$;
CREATE TRIGGER audit_record_noted AFTER INSERT OR UPDATE ON audit_log FOR EACH ROW
  WHEN (NEW.time_completed IS NOT NULL) EXECUTE FUNCTION note_audit_record();
